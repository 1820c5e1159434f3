"""The device that maps memory where it is told to, as KVM sees it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.guest import image_bytes
from qemu_ring.machine import (
    Accelerator,
    Device,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
    probe_qemu,
)
from qemu_ring.memslot import (
    Layout,
    Memslot,
    MemslotTestdev,
    Shape,
    Window,
    layouts,
    memslot_testdev,
    query_memslots,
)
from qemu_ring.migration import EndedEarlyError, HeldPrecopy, MigrationError
from qemu_ring.prove import ProveOptions, prove
from qemu_ring.qmp import CommandError, Monitor
from tests.waiting import DEADLINE

pytestmark = pytest.mark.kvm

MIB = 1 << 20
BASE = 8 << 30
SLOT = Window(BASE, "a", 0, 4 * MIB)
HELPER = Window(9 << 30, "b", 0, MIB)
ELSEWHERE = 10 << 30


@asynccontextmanager
async def running(
    qemu: Path, *, device: bool = True, incoming: bool = False, cpu: str | None = None
) -> AsyncIterator[Machine]:
    """A guest that runs nothing, with the device; it has a vCPU if that is named."""
    with ExitStack() as files:
        sizes = {"ram": 4 * MIB, "a": SLOT.size, "b": HELPER.size}
        ram, *backends = (
            MemoryBackend(name, files.enter_context(UnnamedFile(name, size)))
            for name, size in sizes.items()
        )
        devices: tuple[Device, ...] = (memslot_testdev(backends),) if device else ()
        description = MachineDescription(
            accelerator=Accelerator("kvm"),
            memory=ram,
            machine="pc" if cpu else "none",
            cpu=cpu,
            firmware=image_bytes() if cpu else None,
            paused=True,
            backends=tuple(backends),
            devices=devices,
            incoming="defer" if incoming else None,
        )
        async with await Machine.start(qemu, description) as machine:
            yield machine


async def slots(monitor: Monitor) -> list[Memslot]:
    """Memslots of the device, by address."""
    found = [slot for slot in await query_memslots(monitor) if slot.address >= BASE]
    return sorted(found, key=lambda slot: slot.address)


def resident_bytes(machine: Machine) -> int:
    assert machine.pid is not None
    pages = Path(f"/proc/{machine.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def as_windows(found: list[Memslot]) -> list[tuple[int, str | None, int, int]]:
    return [(slot.address, slot.ram_block, slot.offset, slot.size) for slot in found]


@pytest.mark.parametrize("shape", [shape for shape in Shape if shape is not Shape.PCI])
async def test_each_layout_becomes_memslots(patched_qemu: Path, shape: Shape) -> None:
    async with running(patched_qemu) as machine:
        device = MemslotTestdev(machine.monitor)
        await device.map(Layout((SLOT, HELPER)))
        for layout in layouts(shape, SLOT, HELPER, ELSEWHERE):
            assert len(await device.map(layout)) == 1
            wanted = sorted((w.address, w.backend, w.offset, w.size) for w in layout.windows)
            found = await slots(machine.monitor)
            assert as_windows(found) == wanted
            assert {slot.ram_block for slot in found if slot.read_only} == set(layout.read_only)


async def test_swap_swaps_the_ids(patched_qemu: Path) -> None:
    async with running(patched_qemu) as machine:
        device = MemslotTestdev(machine.monitor)
        await device.map(Layout((SLOT, HELPER)))
        seen = []
        for layout in layouts(Shape.SWAP_IDS, SLOT, HELPER, ELSEWHERE):
            await device.map(layout)
            seen.append({slot.ram_block: slot.slot for slot in await slots(machine.monitor)})
        assert set(seen[3].values()) == set(seen[7].values())
        assert seen[3] != seen[7]


async def test_changes_without_a_pause_leave_no_memory_behind(patched_qemu: Path) -> None:
    """QEMU frees memory maps by RCU, which is to get its turn in between."""
    async with running(patched_qemu) as machine:
        device = MemslotTestdev(machine.monitor)
        await device.map(Layout((SLOT,)), Layout(), repeat=100)
        before = resident_bytes(machine)
        await device.map(Layout((SLOT,)), Layout(), repeat=10_000)
        assert resident_bytes(machine) < before + 50 * MIB


async def test_memslots_that_stay_are_left_alone(patched_qemu: Path) -> None:
    """The helper is in both layouts, so its memslot keeps its id though others come and go."""
    async with running(patched_qemu) as machine:
        device = MemslotTestdev(machine.monitor)
        await device.map(Layout((HELPER,)))
        (alone,) = await slots(machine.monitor)
        await device.map(Layout((SLOT, HELPER)), Layout((HELPER,)), Layout((SLOT, HELPER)))
        assert alone in await slots(machine.monitor)
        assert device.removals == 1


async def test_removals_are_counted(patched_qemu: Path) -> None:
    async with running(patched_qemu) as machine:
        device = MemslotTestdev(machine.monitor)
        whole = Layout((SLOT, HELPER))
        times = await device.map(whole, Layout(), repeat=5)
        assert len(times) == 10
        assert all(0 < nanoseconds < DEADLINE * 1e9 for nanoseconds in times)
        assert device.removals == 10
        await device.map(whole, Layout((SLOT, HELPER), frozenset({"a"})), whole)
        assert device.removals == 12


async def test_what_is_refused_changes_nothing(patched_qemu: Path) -> None:
    async with running(patched_qemu) as machine:
        device = MemslotTestdev(machine.monitor)
        await device.map(Layout((SLOT,)))
        for wrong, message in (
            (Window(BASE, "c", 0, MIB), "has no backend 'c'"),
            (Window(BASE + 1, "a", 0, MIB), "multiples of the page size"),
            (Window(BASE, "a", 0, 8 * MIB), "does not fit"),
            (Window(BASE, "a", 4 * MIB, MIB), "beyond backend 'a'"),
            (Window((64 << 30) - MIB, "a", 0, 2 * MIB), "end of the guest's physical"),
            (Window(1 << 60, "a", 0, MIB), "end of the guest's physical"),
            (Window(-MIB % (1 << 64), "a", 0, MIB), "end of the guest's physical"),
        ):
            with pytest.raises(CommandError, match=message):
                await device.map(Layout(), Layout((wrong,)))
            assert len(await slots(machine.monitor)) == 1
        assert device.removals == 0


async def test_layout_arrives_with_the_guest(patched_qemu: Path) -> None:
    layout = Layout((SLOT.part(MIB, MIB), HELPER), frozenset({"b"}))
    async with (
        running(patched_qemu) as source,
        running(patched_qemu, incoming=True) as destination,
        HeldPrecopy(source, destination) as migration,
    ):
        await MemslotTestdev(source.monitor).map(layout)
        with destination.monitor.events("MIGRATION") as events:
            with pytest.raises(EndedEarlyError):  # nothing keeps it open
                await migration.hold()
            await events.wait(lambda event: event.data["status"] == "completed", timeout=DEADLINE)
        assert as_windows(await slots(destination.monitor)) == as_windows(
            await slots(source.monitor)
        )
        assert [slot.read_only for slot in await slots(destination.monitor)] == [False, True]


async def test_layout_that_the_destination_cannot_map_is_refused(patched_qemu: Path) -> None:
    """It is checked like one of a user's, instead of asking KVM for what makes QEMU abort."""
    async with (
        running(patched_qemu, cpu="qemu64,phys-bits=40") as source,
        running(patched_qemu, cpu="qemu64,phys-bits=36", incoming=True) as destination,
        HeldPrecopy(source, destination) as migration,
    ):
        await MemslotTestdev(source.monitor).map(Layout((SLOT.at(1 << 38),)))
        with destination.monitor.events("MIGRATION") as events:
            # The source may have sent all by then, or not: the user is told the same.
            with pytest.raises(MigrationError, match=r"destination.*end of the guest's physical"):
                await migration.hold()
            await events.wait(lambda event: event.data["status"] == "failed", timeout=DEADLINE)
        assert not await slots(destination.monitor)


def test_example_of_the_documentation_runs(patched_qemu: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/memslots.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    example = example.replace("find_qemu()", f"find_qemu({str(patched_qemu)!r})")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "200 changes, 298 removals, 2 slots now\n"


async def test_guest_without_the_device(patched_qemu: Path) -> None:
    async with running(patched_qemu, device=False) as machine:
        with pytest.raises(CommandError, match="not exactly one memslot-testdev"):
            await MemslotTestdev(machine.monitor).map(Layout())


async def test_unpatched_qemu_has_no_such_device(qemu_path: Path) -> None:
    if (await probe_qemu(qemu_path)).memslot_testdev:
        pytest.skip("the QEMU to test with is itself patched")
    with pytest.raises(QemuUnsuitableError, match=r"no device memslot-testdev; .*qemu-ring build"):
        await prove(qemu_path, ProveOptions(shapes=(Shape.SPLIT,)))
    async with running(qemu_path, device=False) as machine:
        with pytest.raises(QemuUnsuitableError, match="not patched"):
            await MemslotTestdev(machine.monitor).map(Layout())
