"""Processes that are started again on a store that others have written to."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from common.errors import UserError
from engine.distributed import own_store
from tests.conftest import free_port


@pytest.fixture
def stores() -> Iterator[list[dist.TCPStore]]:
    """The launcher's store, as three processes are connected to it."""
    port = free_port()
    server = dist.TCPStore("127.0.0.1", port, is_master=True)
    yield [dist.TCPStore("127.0.0.1", port, is_master=False) for _ in range(3)]
    del server


def start(stores: list[dist.TCPStore], ranks: list[int], timeout: float) -> list[dist.Store | None]:
    """What each of some processes gets; None if it gives up."""

    def one(rank: int) -> dist.Store | None:
        try:
            return own_store(stores[rank], rank, 3, timeout)
        except UserError:
            return None

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(one, ranks))


def assert_shared(found: list[dist.Store | None]) -> None:
    """Whether all see what one has written, and nothing that was there before."""
    first = found[0]
    assert first is not None
    assert not first.check(["seen"])
    first.set("seen", "yes")
    assert all(store is not None and store.get("seen") == b"yes" for store in found)


def test_every_start_has_its_own_part(stores: list[dist.TCPStore]) -> None:
    for ranks in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert_shared(start(stores, ranks, 10))


def test_starts_that_were_cut_short_leave_nothing(stores: list[dist.TCPStore]) -> None:
    for ranks in ([1], [0, 2], [0], [1, 2], [0, 1]):
        start(stores, ranks, 0.3)
    assert_shared(start(stores, [0, 1, 2], 10))


def test_who_is_missing_is_named(stores: list[dist.TCPStore]) -> None:
    with pytest.raises(UserError, match="process 1, 2 of 3 has not started within 0 s"):
        own_store(stores[0], 0, 3, 0.2)
    with pytest.raises(UserError, match="process 0 of 3 has not started"):
        own_store(stores[1], 1, 3, 0.2)
