"""The example descriptions under KVM: tracking, flush policy and slots are as they say."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from qemu_ring.errors import HostError, QemuUnsuitableError
from qemu_ring.guest.linux import debian_kernel, initramfs, read_reports
from qemu_ring.guestfile import RunningGuest, load_guest, start_guest
from qemu_ring.machine import (
    Accelerator,
    Machine,
    MachineDescription,
    MemoryBackend,
    UnnamedFile,
)
from qemu_ring.memslot import query_flush, query_memslots, query_rings
from qemu_ring.migration import HeldPrecopy
from qemu_ring.qmp import commands
from qemu_ring.verify import Block, compare
from tests.waiting import DEADLINE, until

MIB = 1 << 20
GUESTS = Path(__file__).resolve().parents[3] / "guests"


@pytest.mark.ring
@pytest.mark.parametrize("entries", [1024, 8192])
async def test_writers(patched_qemu: Path, entries: int) -> None:
    guest = load_guest(
        GUESTS / "writers.yaml", [f"tracking=ring:{entries}", "flush-policy=quiesce"]
    )
    async with start_guest(guest, patched_qemu) as running:
        await running.wait_up()
        rings = await query_rings(running.machine.monitor)
        assert (rings.size, len(rings.rings)) == (entries, 2)
        flush = await query_flush(running.machine.monitor)
        assert flush.policy.value == flush.effective.value == "quiesce"


@pytest.mark.kvm
async def test_bitmap(patched_qemu: Path) -> None:
    guest = load_guest(GUESTS / "writers.yaml", ["tracking=bitmap"])
    async with start_guest(guest, patched_qemu) as running:
        await running.wait_up()
        assert (await query_rings(running.machine.monitor)).size == 0


@pytest.mark.kvm
async def test_flush_policy_needs_a_patched_qemu(qemu_path: Path) -> None:
    guest = load_guest(GUESTS / "writers.yaml", ["tracking=bitmap", "flush-policy=auto"])
    with pytest.raises(QemuUnsuitableError, match="is not patched"):
        async with start_guest(guest, qemu_path):
            pass


@pytest.mark.ring
async def test_slots_are_removed_and_written(patched_qemu: Path) -> None:
    async with start_guest(load_guest(GUESTS / "slots.yaml"), patched_qemu) as running:
        await running.wait_up()
        assert running.control is not None
        found = await running.control.wait(
            lambda s: s.vcpus[1].passes >= 3 and s.writes_to("slot") > 1000,
            timeout=DEADLINE,
            what="the slots are not cycled",
        )
        assert found.vcpus[1].passes >= 3


@pytest.mark.ring
async def test_slots_of_a_running_guest_can_be_removed(patched_qemu: Path) -> None:
    guest = load_guest(GUESTS / "slots.yaml", ["workload.streams[1]={pattern: idle}"])
    async with start_guest(guest, patched_qemu) as running:
        await running.wait_up()
        assert running.slots is not None
        monitor = running.machine.monitor
        there = {slot.ram_block: slot.address for slot in await query_memslots(monitor)}
        assert [there[block] for block in there if block and "slot" in block] == [1 << 30]
        await running.slots.cycle(["slot", "helper"])
        await running.slots.remove("slot")
        blocks = [slot.ram_block or "" for slot in await query_memslots(monitor)]
        assert not [block for block in blocks if "slot" in block]


# Prints a, counts to a million in ring 0, prints b.
_COUNTER = (
    b"\xba\xf8\x03\xb0a\xee"  # mov dx, 0x3f8; mov al, 'a'; out dx, al
    b"\x66\xb9\x40\x42\x0f\x00"  # mov ecx, 1000000
    b"\x66\x49\x75\xfc"  # dec ecx; jnz
    b"\xb0b\xee\xf4\xeb\xfd"  # mov al, 'b'; out dx, al; hlt; jmp
)
_EMULATED_SECONDS = 0.25  # a CPU takes 1 ms, KVM's emulator 1 s and more


async def ring0_seconds(qemu: Path) -> float:
    """How long this KVM takes for two million instructions in ring 0."""
    image = _COUNTER.ljust(65536 - 16, b"\0") + b"\xe9\x0d\x00".ljust(16, b"\0")
    with UnnamedFile("ram", 16 * MIB) as file:
        description = MachineDescription(
            accelerator=Accelerator("kvm"), memory=MemoryBackend("ram", file), firmware=image
        )
        async with await Machine.start(qemu, description) as machine:
            seen: dict[str, float] = {}
            deadline = time.monotonic() + 60
            while len(seen) < 2:
                assert time.monotonic() < deadline
                for letter in machine.text("serial"):
                    seen.setdefault(letter, time.monotonic())
                await asyncio.sleep(0.001)
            return seen["b"] - seen["a"]


async def counting(guest: RunningGuest, reports: int) -> None:
    await until(
        lambda: len(read_reports(guest.machine.text("serial"))) >= reports, f"{reports} reports"
    )


@pytest.mark.kvm
async def test_linux_boots_and_is_migrated(patched_qemu: Path) -> None:
    seconds = await ring0_seconds(patched_qemu)
    if seconds > _EMULATED_SECONDS:
        speed = 2 / seconds
        pytest.skip(
            f"this KVM emulates ring 0 ({speed:.1f} million instructions/s): Debian's kernel does "
            "not boot under it"
        )
    try:
        await debian_kernel()
        await initramfs()
    except HostError as error:
        pytest.skip(f"no Linux guest can be made here: {error}")
    guest = load_guest(
        GUESTS / "linux.yaml",
        ["linux.workload.report-seconds=0.1", "linux.workload.pages-per-second=100000"],
    )
    async with (
        start_guest(guest, patched_qemu, name="source") as source,
        start_guest(guest, patched_qemu, name="twin", incoming="defer", paused=True) as twin,
    ):
        await source.wait_up()
        async with HeldPrecopy(source.machine, twin.machine) as migration:
            await migration.hold()
            await counting(source, len(read_reports(source.machine.text("serial"))) + 3)
            await migration.finish()
        fds = (source.files["ram"].fd, twin.files["ram"].fd)
        assert (await compare([Block("ram", *fds, guest.memory)])).equal
        last = read_reports(source.machine.text("serial"))[-1]
        await commands.cont(twin.machine.monitor)
        await counting(twin, 10)
        arrived = read_reports(twin.machine.text("serial"))
        assert arrived[0].writes > last.writes
        assert arrived[-1].stale == 0
