"""A part of the launcher's store that no earlier start of the same job has written to.

torchrun keeps its store when --max-restarts starts the processes again, and does not set apart what
the ended ones have left there (pytorch/pytorch#135712): addresses that nobody listens to any more.
TORCHELASTIC_RESTART_COUNT would tell the starts apart, but may differ from node to node.
"""

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

from common.errors import UserError

_LOOK_EVERY = 0.02  # seconds


def own_store(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """`store` under a name that the processes started now agree on; called once, by each of them.

    Each asks by a word of its own, which only a living process 0 can answer. Raises UserError
    where a process is not there within `timeout` seconds.
    """
    word = uuid.uuid4().hex
    if rank == 0:
        _answer(store, size, word, timeout)
        return dist.PrefixStore(word, store)
    store.set(f"asks/{rank}", word)
    try:
        store.wait([f"answer/{word}"], timedelta(seconds=timeout))
    except dist.DistStoreError as error:
        raise UserError(f"process 0 of {size} has not started within {timeout:.0f} s") from error
    name = store.get(f"answer/{word}").decode()
    store.set(f"here/{name}/{rank}", "")
    return dist.PrefixStore(name, store)


def _answer(store: dist.Store, size: int, name: str, timeout: float) -> None:
    """Tell all others the name, also those that ask again where one has asked that is no more."""
    missing, end = set(range(1, size)), time.monotonic() + timeout
    while missing:
        if time.monotonic() > end:
            who = ", ".join(map(str, sorted(missing)[:8]))
            raise UserError(f"process {who} of {size} has not started within {timeout:.0f} s")
        for rank in sorted(missing):
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", name)
        missing -= {rank for rank in missing if store.check([f"here/{name}/{rank}"])}
        time.sleep(_LOOK_EVERY)
