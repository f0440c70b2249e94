"""Processes that are started again with a store to which earlier ones have written."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from common.errors import UserError
from engine.distributed import own_store
from tests.conftest import free_port


@pytest.fixture
def stores() -> Iterator[list[dist.TCPStore]]:
    """Three processes' connections to the launcher's store."""
    port = free_port()
    server = dist.TCPStore("127.0.0.1", port, is_master=True)
    yield [dist.TCPStore("127.0.0.1", port, is_master=False) for _ in range(3)]
    del server


def start(stores: list[dist.TCPStore], ranks: list[int], timeout: float) -> list[dist.Store | None]:
    """Start these processes; returns the store that each gets, None if it gives up."""

    def start_process(rank: int) -> dist.Store | None:
        try:
            return own_store(stores[rank], rank, 3, timeout)
        except UserError:
            return None

    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(start_process, ranks))


def assert_shared(own_stores: list[dist.Store | None]) -> None:
    """All see what the first has written, and nothing that was there before."""
    first = own_stores[0]
    assert first is not None
    assert not first.check(["seen"])
    first.set("seen", "yes")
    assert all(store is not None and store.get("seen") == b"yes" for store in own_stores)


def test_every_start_has_its_own_part(stores: list[dist.TCPStore]) -> None:
    for ranks in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert_shared(start(stores, ranks, 10))


def test_starts_that_were_cut_short_leave_nothing(stores: list[dist.TCPStore]) -> None:
    for ranks in ([1], [0, 2], [0], [1, 2], [0, 1]):
        start(stores, ranks, 0.3)
    assert_shared(start(stores, [0, 1, 2], 10))


def test_missing_processes_are_named(stores: list[dist.TCPStore]) -> None:
    with pytest.raises(UserError, match="process 1, 2 of 3 has not started within 0 s"):
        own_store(stores[0], 0, 3, 0.2)
    with pytest.raises(UserError, match="process 0 of 3 has not started"):
        own_store(stores[1], 1, 3, 0.2)
