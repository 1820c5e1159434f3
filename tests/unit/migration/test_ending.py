"""A guest that is held to be verified goes on, whatever becomes of the comparison."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qemu_ring.errors import DeadlineError, UsageError
from qemu_ring.migration import GuestAt, MigrationError, MigrationPlan, Unix
from qemu_ring.migration.engine.idle import go_on_at_source
from qemu_ring.verify import Block, Comparison, StalePage
from tests.unit.migration.conftest import refusal, until
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    from tests.unit.migration.conftest import Fakes

SIZE = 4096
EQUAL = Comparison(SIZE, SIZE, 0, ())
STALE = Comparison(SIZE, SIZE, 1, (StalePage("ram", 0, "a", "b"),))

Compare = Callable[[Sequence[Block]], object]


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[list[Block]]:
    paths = [tmp_path / "one", tmp_path / "other"]
    for path in paths:
        path.write_bytes(bytes(SIZE))
    with paths[0].open("rb") as one, paths[1].open("rb") as other:
        yield [Block("ram", one.fileno(), other.fileno(), SIZE)]


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Compare], None]:
    """Have memory compared by this."""

    def use(compare: Compare) -> None:
        monkeypatch.setattr("qemu_ring.migration.engine.completion.compare", compare)

    return use


def found(comparison: Comparison) -> Compare:
    async def compare(_: Sequence[Block]) -> Comparison:
        return comparison

    return compare


async def never(_: Sequence[Block]) -> Comparison:
    await asyncio.Event().wait()
    raise AssertionError


def states(fakes: Fakes) -> tuple[str, str]:
    return fakes.source.state, fakes.destination.state


async def test_equal_memory_lets_it_go_on_there(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None]
) -> None:
    comparing(found(EQUAL))
    async with fakes.migration(verify=blocks) as migration:
        assert fakes.destination.count("stop") == 1
        assert fakes.destination.capabilities["late-block-activate"]
        fakes.source.status("setup", "active")
        fakes.arrive()
        result = await migration.complete(timeout=DEADLINE)
    assert result.outcome.guest_at is GuestAt.DESTINATION
    assert not fakes.destination.capabilities["late-block-activate"]


@pytest.mark.parametrize("where", [GuestAt.SOURCE, GuestAt.DESTINATION, GuestAt.NOWHERE])
async def test_stale_memory_lets_it_go_on_where_the_plan_says(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None], where: GuestAt
) -> None:
    comparing(found(STALE))
    plan = MigrationPlan(channel=Unix(), if_stale=where)
    async with fakes.migration(plan, verify=blocks) as migration:
        fakes.source.status("setup", "active")
        fakes.arrive()
        result = await migration.complete(timeout=DEADLINE)
    assert result.comparison == STALE
    assert result.outcome.guest_at is where
    assert (result.downtime.seconds is None) or where is GuestAt.DESTINATION


async def test_source_that_cannot_go_on_is_told_of(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None]
) -> None:
    comparing(found(STALE))
    fakes.source.replies["cont"] = lambda _: {"class": "GenericError", "desc": "no lock"}
    async with fakes.migration(verify=blocks) as migration:
        fakes.source.status("setup", "active")
        fakes.arrive()
        result = await migration.complete(timeout=DEADLINE)
    assert result.outcome.guest_at is GuestAt.NOWHERE
    assert result.problem == "source: cont: no lock"
    assert states(fakes) == ("postmigrate", "paused")


async def test_plan_without_a_place() -> None:
    with pytest.raises(UsageError, match="go on unknown"):
        MigrationPlan(if_stale=GuestAt.UNKNOWN)


async def test_memory_that_cannot_be_read(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None]
) -> None:
    async def fail(_: Sequence[Block]) -> Comparison:
        raise OSError("bad sector")

    comparing(fail)
    async with fakes.migration(verify=blocks) as migration:
        fakes.source.status("setup", "active")
        fakes.arrive()
        with pytest.raises(MigrationError, match=r"not compared: bad sector; .* at the d"):
            await migration.complete(timeout=DEADLINE)
        assert states(fakes) == ("postmigrate", "running")


async def test_cancelled_while_memory_is_compared(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None]
) -> None:
    begun = asyncio.Event()

    async def compare(_: Sequence[Block]) -> Comparison:
        begun.set()
        return await never(_)

    async def migrate() -> None:
        async with fakes.migration(verify=blocks) as migration:
            fakes.source.status("setup", "active")
            fakes.arrive()
            await migration.complete()

    comparing(compare)
    task = asyncio.create_task(migrate())
    await asyncio.wait_for(begun.wait(), 5)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # and once more, while the guest is let go
    with pytest.raises(asyncio.CancelledError):
        await task
    assert states(fakes) == ("postmigrate", "running")


async def test_left_before_memory_is_compared(fakes: Fakes, blocks: list[Block]) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fakes.migration(verify=blocks):
            fakes.source.status("setup", "active")
            fakes.arrive()
            raise ZeroDivisionError
    assert states(fakes) == ("postmigrate", "running")


@pytest.mark.parametrize("has_disk", [True, False])
async def test_left_while_the_destination_loads_the_last(
    fakes: Fakes, blocks: list[Block], has_disk: bool
) -> None:
    """What `cont` does to a QEMU that waits depends on its version: it is not sent before."""
    loaded = 0

    def status(_: object) -> dict[str, object]:
        nonlocal loaded
        fake = fakes.destination
        loaded += 1
        if loaded == 5:
            assert fake.count("cont") == 0
            fake.state = "paused"
        return {"status": fake.state, "running": fake.state == "running"}

    if has_disk:
        fakes.destination.replies["query-named-block-nodes"] = lambda _: [{}]
    async with fakes.migration(verify=[] if has_disk else blocks):
        fakes.source.status("setup", "active", "completed")
        fakes.source.state = "postmigrate"
        fakes.destination.status("active")
        loaded = 0
        fakes.destination.replies["query-status"] = status
    assert fakes.destination.count("cont") == 1
    assert states(fakes) == ("postmigrate", "running")


async def test_deadline_passes_while_memory_is_compared(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None]
) -> None:
    """Nothing is lost: it can be completed again."""
    comparing(never)
    async with fakes.migration(verify=blocks) as migration:
        fakes.source.status("setup", "active")
        fakes.arrive()
        await until(lambda: migration.status == "completed")
        with pytest.raises(DeadlineError, match="it is completed; allow more time"):
            await migration.complete(timeout=0.05)
        assert states(fakes) == ("postmigrate", "paused")
        comparing(found(EQUAL))
        result = await migration.complete(timeout=DEADLINE)
    assert result.comparison == EQUAL
    assert states(fakes) == ("postmigrate", "running")


async def test_destination_that_is_slower_than_a_deadline(fakes: Fakes) -> None:
    async with fakes.migration() as migration:
        fakes.source.status("setup", "active", "completed")
        fakes.source.state = "postmigrate"
        await until(lambda: migration.status == "completed")
        with pytest.raises(DeadlineError, match="it is completed; allow more time"):
            await migration.complete(timeout=0.05)
        fakes.destination.state = "running"
        fakes.destination.status("completed")
        result = await migration.complete(timeout=DEADLINE)
        assert result == await migration.complete(timeout=DEADLINE)
    assert result.outcome.guest_at is GuestAt.DESTINATION


async def test_guest_that_its_user_paused_on_the_way_stays_so(
    fakes: Fakes, blocks: list[Block], comparing: Callable[[Compare], None]
) -> None:
    comparing(found(EQUAL))
    async with fakes.migration(verify=blocks) as migration:
        fakes.source.status("setup", "active")
        asked = fakes.source.count("query-status")
        fakes.source.state = "paused"
        fakes.source.event("STOP")
        await until(lambda: fakes.source.count("query-status") > asked)
        fakes.arrive()
        result = await migration.complete(timeout=DEADLINE)
    assert result.outcome.guest_at is GuestAt.NOWHERE
    assert states(fakes) == ("postmigrate", "paused")
    assert result.downtime.switchover_seconds is None


@pytest.mark.parametrize("which", ["a directory", "a short file", "one file"])
async def test_memory_that_cannot_be_compared_is_told_before_it_begins(
    fakes: Fakes, blocks: list[Block], tmp_path: Path, which: str
) -> None:
    [block] = blocks
    (tmp_path / "short").write_bytes(b"")
    path = {"a directory": tmp_path, "a short file": tmp_path / "short"}.get(which)
    fd = os.open(path or tmp_path / "one", os.O_RDONLY)
    bad = Block("ram", block.source, fd, SIZE)
    words = {"a directory": "at the destination is no file", "a short file": "has 0 bytes"}
    try:
        with pytest.raises(UsageError, match=words.get(which, "both sides have the same file")):
            async with fakes.migration(verify=[bad]):
                pass
    finally:
        os.close(fd)
    assert fakes.source.count("migrate-set-capabilities") == 0


async def test_source_goes_on_when_qemu_is_through_with_its_migration(fakes: Fakes) -> None:
    """QEMU, which has told that it has completed, refuses before that."""
    source = fakes.source
    source.state = "finish-migrate"
    looks = 0

    def status(_: object) -> dict[str, object]:
        nonlocal looks
        looks += 1
        if looks == 3:
            source.state = "postmigrate"
        return {"status": source.state, "running": False}

    def cont(_: object) -> dict[str, str]:
        if source.state == "finish-migrate":
            return refusal("Migration is not finalized yet")
        source.state = "running"
        return {}

    source.replies = {"query-status": status, "cont": cont}
    await go_on_at_source(fakes.first.monitor)
    assert source.state == "running"
