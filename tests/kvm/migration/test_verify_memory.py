"""What is compared is what both QEMUs have mapped, whatever kind of memory it is."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration import Migration, MigrationPlan, MigrationResult, Unix
from qemu_ring.migration.blocks import OpenedBlocks, opened_blocks
from qemu_ring.verify import Block, ProcessMemory, compare
from tests.command import run_command
from tests.kvm.migration.qemus import RAM, Qemus
from tests.proxy import proxied

pytestmark = pytest.mark.kvm

KINDS = {
    "anonymous": "memory-backend-ram",
    "anonymous, shared": "memory-backend-ram,share=on",
    "memfd": "memory-backend-memfd",
    "memfd, private": "memory-backend-memfd,share=off",
    "file": "memory-backend-file,share=on,mem-path={folder}/{name}.ram",
    "file, private": "memory-backend-file,share=off,mem-path={folder}/{name}.ram",
    "no name": "memory-backend-file,share=on,mem-path={folder}",
}
PAGE = 4096
START = Callable[..., Qemus]


@pytest.fixture(params=["qemu_path", "patched_qemu"], ids=["distribution", "patched"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[START]:
    """Start both QEMUs with this kind of memory."""
    binary: Path = request.getfixturevalue(request.param)
    with ExitStack() as stack:

        def started(kind: str = "file", *extra: str) -> Qemus:
            qemus = Qemus(tmp_path, binary, memory=KINDS[kind], extra=extra)
            stack.callback(qemus.stop)
            return qemus

        yield started


@asynccontextmanager
async def verified(
    source: str, destination: str
) -> AsyncIterator[tuple[OpenedBlocks, MigrationResult]]:
    """Migrate, verify, and leave the guest paused."""
    plan = MigrationPlan(channel=Unix(), leave_paused=True)
    async with (
        await Machine.attach(source) as one,
        await Machine.attach(destination) as other,
        opened_blocks(one, other) as opened,
    ):
        async with Migration(one, other, plan, verify=opened.blocks) as migration:
            result = await migration.complete(timeout=60)
        yield opened, result


def main_memory(opened: OpenedBlocks) -> Block:
    [block] = [block for block in opened.blocks if block.name == "ram"]
    assert block.size == RAM
    return block


def spoil(process: int, block: Block, page: int) -> None:
    """Change a byte of the destination, as it sees it."""
    memory = block.destination
    if isinstance(memory, ProcessMemory):
        assert memory.process == process
        path, offset = f"/proc/{process}/mem", memory.address
    else:
        path, offset = f"/proc/self/fd/{memory}", 0
    with Path(path).open("r+b", buffering=0) as file:
        file.seek(offset + page * PAGE + 9)
        file.write(b"\x5a")


@pytest.mark.parametrize("kind", KINDS)
async def test_kinds_of_memory(start: START, kind: str) -> None:
    qemus = start(kind)
    async with verified(qemus.source, qemus.destination) as (opened, result):
        assert result.comparison is not None
        assert result.comparison.equal
        block = main_memory(opened)
        private = "private" in kind or kind == "anonymous"
        assert isinstance(block.source, ProcessMemory) == private
        page = RAM // PAGE - 1  # which the guest does not write
        spoil(qemus.processes[1].pid, block, page)
        again = await compare(opened.blocks)
        assert [(one.block, one.page) for one in again.stale] == [("ram", page)]


@pytest.mark.parametrize("kind", ["file", "file, private"])
async def test_name_that_leads_to_another_file_by_now(
    start: START, kind: str, tmp_path: Path
) -> None:
    qemus = start(kind)
    for watch in qemus.watches:  # one that answers has its memory
        await (await Machine.attach(watch)).close()
    for name in ("source", "twin"):
        path = tmp_path / f"{name}.ram"
        path.unlink()
        path.write_bytes(name.encode().ljust(RAM, b"x"))
    async with verified(qemus.source, qemus.destination) as (opened, result):
        assert result.comparison is not None
        assert result.comparison.equal
        spoil(qemus.processes[1].pid, main_memory(opened), 0)
        assert (await compare(opened.blocks)).pages_stale_total == 1


async def test_all_blocks_are_compared_or_named(start: START) -> None:
    """Video memory, too; not all QEMUs tell where it is as long as the guest does not see it."""
    qemus = start("file", "-device", "VGA,id=vga,addr=5")
    async with verified(qemus.source, qemus.destination) as (opened, result):
        assert result.comparison is not None
        assert result.comparison.equal
        names = {block.name for block in opened.blocks}
        assert {"ram", "pc.bios"} <= names
        assert names.isdisjoint(opened.left_out)
        assert "0000:00:05.0/vga.vram" in names | {*opened.left_out}
        told = [block.size for block in opened.blocks]
        assert result.comparison.bytes_total == sum(told)


async def test_same_memory_on_both_sides(start: START) -> None:
    qemus = start("file")
    async with (
        await Machine.attach(qemus.source) as one,
        await Machine.attach(qemus.watches[0]) as other,
    ):
        with pytest.raises(UsageError, match="both sides have the same file"):
            async with opened_blocks(one, other):
                pass


async def test_memory_that_may_not_be_looked_at(start: START) -> None:
    """Another process, for one with the number that is told: it has not this guest's memory."""
    qemus = start("file")
    async with (
        await Machine.attach(qemus.source) as one,
        await Machine.attach(qemus.destination) as other,
    ):
        with pytest.raises(UsageError, match="is not its QEMU"):
            async with opened_blocks(one, other, processes=(os.getpid(), None)):
                pass


async def test_qemu_that_does_not_tell_what_is_shared(start: START, tmp_path: Path) -> None:
    """As before 6.1: what is mapped tells."""
    qemus = start("file")

    def without_share(line: bytes) -> bytes:
        return re.sub(rb'"share": (true|false), ', b"", line)

    ends = [tmp_path / "a", tmp_path / "b"]
    async with (
        proxied(Path(qemus.source), ends[0]) as first,
        proxied(Path(qemus.destination), ends[1]) as second,
    ):
        first.edit = second.edit = without_share
        async with await Machine.attach(str(ends[0])) as machine:
            told = await machine.monitor.execute("query-memdev")
            assert isinstance(told, list)
            assert all("share" not in one for one in told)
        async with verified(*map(str, ends)) as (opened, result):
            assert result.comparison is not None
            assert result.comparison.equal
            assert isinstance(main_memory(opened).source, int)


def test_command_names_what_it_leaves_out(start: START) -> None:
    qemus = start("anonymous", "-device", "VGA,id=vga,addr=5")
    out, _ = run_command("migrate", "--verify", "--json", qemus.source, qemus.destination)
    document = json.loads(out)
    assert document["stale_pages"] == 0
    assert set(document["not_compared"]) <= {
        "0000:00:05.0/vga.vram",
        "0000:00:05.0/vga.rom",
        "/rom@etc/acpi/tables",
        "/rom@etc/acpi/rsdp",
        "/rom@etc/table-loader",
        "pc.rom",
    }
