"""What a guest's twin has to have before it takes over: memory in BARs, where the guest has it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.guestfile import RunningGuest, load_guest, parse_guest, start_guest
from qemu_ring.machine import Machine, probe_qemu
from qemu_ring.memslot import PciAddress
from qemu_ring.memslot.pci_config import ConfigWrite, write_config
from qemu_ring.migration.errors import MigrationError
from qemu_ring.migration.toggling import shared_memory
from qemu_ring.migration.toggling.toggle import Toggled, toggle
from qemu_ring.migration.toggling.twin import twin_accelerator
from qemu_ring.qmp import Monitor, PciDevice, commands
from tests.waiting import DEADLINE, until

pytestmark = pytest.mark.ring

ROOT = Path(__file__).resolve().parents[3]
MIB = 1 << 20
BAR = 2
"""Of ivshmem-plain, where its memory is."""
JUMP_TO_ITSELF = b"\xeb\xfe"

SLOTS = """
memory: 64 MiB
tracking: {tracking}
slots:
  - {{name: low, size: 4 MiB, address: 1 GiB}}
  - {{name: high, size: 2 MiB, address: 8 GiB}}
  - {{name: more, size: 4 MiB, address: 2 GiB}}
workload:
  regions: [{{name: low, slot: low}}]
  streams: [{{pattern: loop, pages-per-second: 20000}}]
"""


@dataclass
class Guest:
    """A described guest, wherever it is."""

    binary: Path
    running: RunningGuest
    machine: Machine
    stack: AsyncExitStack

    async def to(self, tracking: str) -> Toggled:
        wanted = Tracking.parse(tracking)
        accelerator = await twin_accelerator(self.machine, wanted, await probe_qemu(self.binary))
        toggled = await toggle(self.machine, self.binary, accelerator, timeout=DEADLINE)
        self.machine = await self.stack.enter_async_context(toggled.machine)
        return toggled

    async def writes_on(self) -> None:
        """Wait until the guest has written more."""
        assert self.running.control is not None
        before = self.running.control.statistics().writes
        await self.running.control.wait(
            lambda now: now.writes > before + 1000,
            timeout=DEADLINE,
            what="the guest does not write",
        )

    async def bars(self) -> dict[str, int]:
        """Where its BARs and the buses behind its bridges are."""
        return await bars(self.machine.monitor)


async def bars(monitor: Monitor) -> dict[str, int]:
    found = {}

    def add(path: str, devices: tuple[PciDevice, ...]) -> None:
        for one in devices:
            where = f"{path}/{one.slot:02x}.{one.function}"
            found.update({f"{where} BAR {r.bar}": r.address for r in one.regions})
            if one.pci_bridge is not None:
                found[f"{where} bus"] = max((d.bus for d in one.pci_bridge.devices), default=-1)
                add(where, one.pci_bridge.devices)

    for bus in await commands.query_pci(monitor):
        add(str(bus.bus), bus.devices)
    return found


@asynccontextmanager
async def guest(text: str, binary: Path, *, paused: bool = False) -> AsyncIterator[Guest]:
    async with AsyncExitStack() as stack:
        started = start_guest(parse_guest(text), binary, paused=paused)
        running = await stack.enter_async_context(started)
        yield Guest(binary, running, running.machine, stack)


async def test_example_to_and_fro(binary: Path) -> None:
    """Its second vCPU removes both slots and adds them again all the time."""
    async with AsyncExitStack() as stack:
        described = load_guest(ROOT / "guests/slots.yaml")
        running = await stack.enter_async_context(start_guest(described, binary))
        one = Guest(binary, running, running.machine, stack)
        await running.wait_up()
        for tracking in ("bitmap", "ring:1024", "ring:4096"):
            await one.to(tracking)
            await one.writes_on()


async def test_bars_stay_where_they_are(binary: Path) -> None:
    async with guest(SLOTS.format(tracking="ring:4096"), binary) as one:
        await one.running.wait_up()
        before = await one.bars()
        assert {1 << 30, 2 << 30, 8 << 30} <= set(before.values())
        for tracking in ("bitmap", "ring:1024"):
            await one.to(tracking)
            assert await one.bars() == before
            await one.writes_on()


async def test_bar_that_is_not_mapped_now(binary: Path) -> None:
    """QEMU compares where it was mapped last."""
    async with guest(SLOTS.format(tracking="bitmap"), binary) as one:
        await one.running.wait_up()
        assert one.running.slots is not None
        await one.running.slots.remove("more")
        before = await one.bars()
        await one.to("ring:4096")
        assert await one.bars() == before
        address = PciAddress(0x12)
        await write_config(one.machine.monitor, [ConfigWrite.memory_enable(address, on=True)])
        assert (await one.bars())["0/12.0 BAR 2"] == 2 << 30
        await one.to("bitmap")
        assert (await one.bars())["0/12.0 BAR 2"] == 2 << 30
        await one.writes_on()


async def test_bar_that_was_given_another_address_while_unmapped(binary: Path) -> None:
    """The address in its register is not where it was mapped last."""
    async with guest(SLOTS.format(tracking="bitmap"), binary) as one:
        await one.running.wait_up()
        address = PciAddress(0x12)
        disabled = ConfigWrite.memory_enable(address, on=False)
        moved = ConfigWrite.bar(address, BAR, 3 << 30)
        await write_config(one.machine.monitor, [disabled, *moved])
        await one.to("ring:4096")
        assert (await one.bars())["0/12.0 BAR 2"] == -1
        await write_config(one.machine.monitor, [ConfigWrite.memory_enable(address, on=True)])
        assert (await one.bars())["0/12.0 BAR 2"] == 3 << 30
        await one.to("bitmap")
        await one.writes_on()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_bar_that_is_moved_meanwhile(
    binary: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Before the last look the twin follows; after it the guest stays where it is."""
    async with guest(SLOTS.format(tracking="bitmap"), binary) as one:
        await one.running.wait_up()
        slots = one.running.slots
        assert slots is not None
        name = {"before": "migrate_incoming", "after": "migrate"}[when]
        real = getattr(commands, name)

        async def move_first(monitor: Monitor, uri: str) -> None:
            await slots.move("more", 3 << 30)
            await real(monitor, uri)

        with monkeypatch.context() as patch:
            patch.setattr(commands, name, move_first)
            if when == "before":
                await one.to("ring:4096")
            else:
                with pytest.raises(MigrationError) as caught:
                    await one.to("ring:4096")
                message = caught.value.message
                assert "moved its memory more from 0x80000000 to 0xc0000000" in message
                assert message.endswith("try again; the guest goes on where it was")
        assert (await one.bars())["0/12.0 BAR 2"] == 3 << 30
        await one.writes_on()
        await one.to("ring:1024")
        assert (await one.bars())["0/12.0 BAR 2"] == 3 << 30
        await one.writes_on()


async def test_twin_that_cannot_be_programmed(
    binary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without the ports 0xcf8 and 0xcfc."""

    async def no_ports(*arguments: object) -> None:
        pass

    async with guest(SLOTS.format(tracking="bitmap"), binary) as one:
        await one.running.wait_up()
        with monkeypatch.context() as patch:
            patch.setattr(shared_memory, "map_bars_once", no_ports)
            with pytest.raises(QemuUnsuitableError, match=r"is at 0x\w+, and cannot be brought"):
                await one.to("ring:4096")
        await one.writes_on()
        await one.to("ring:4096")
        await one.writes_on()


BEHIND = """
memory: 64 MiB
machine: {machine}
accelerator: kvm
tracking: bitmap
backends:
  - {{id: here, size: 4 MiB}}
  - {{id: there, size: 8 MiB}}
devices:
  - {{driver: VGA}}
  - {{driver: virtio-net-pci}}
  - {{driver: ivshmem-plain, properties: {{memdev: here, master: true}}}}
{bridges}
  - driver: ivshmem-plain
    properties: {{memdev: there, master: true, bus: second, addr: 5}}
disks: [{{path: {disk}}}]
extra: [-debugcon, "file:{log}", -global, isa-debugcon.iobase=0x402]
"""
BRIDGES = {
    "pc": [("pci-bridge", "first", "pci.0", 8), ("pci-bridge", "second", "first", 3)],
    "q35": [("pcie-root-port", "first", "pcie.0", 8), ("pcie-pci-bridge", "second", "first", 0)],
}


@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_what_a_bios_has_mapped(binary: Path, machine: str, tmp_path: Path) -> None:
    """Behind two bridges, too; with a display, a network card and a disk."""
    disk = tmp_path / "disk"
    disk.write_bytes((JUMP_TO_ITSELF.ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0"))
    bridges = "\n".join(
        f"  - {{driver: {driver}, properties: {{id: {name}, bus: {bus}, addr: {addr}"
        + (", chassis_nr: 1}}" if driver == "pci-bridge" else "}}")
        for driver, name, bus, addr in BRIDGES[machine]
    )
    log = tmp_path / "log"
    text = BEHIND.format(machine=machine, bridges=bridges, disk=disk, log=log)
    async with guest(text, binary) as one:
        await until(lambda: "Booting from Hard Disk" in log.read_text(), "the BIOS starts the disk")
        before = await one.bars()
        memory = [at for where, at in before.items() if re.search(r"05\.0 BAR 2$", where)]
        assert len(memory) == 1
        assert memory[0] > 0
        for tracking in ("ring:4096", "bitmap"):
            toggled = await one.to(tracking)
            assert toggled.running
            assert await one.bars() == before


UEFI = """
memory: 128 MiB
machine: q35
accelerator: kvm
tracking: bitmap
backends: [{{id: shared, size: 4 MiB}}]
devices:
  - {{driver: VGA}}
  - {{driver: ivshmem-plain, properties: {{memdev: shared, master: true}}}}
extra:
  - -drive
  - if=pflash,format=raw,readonly=on,file={code}
  - -drive
  - if=pflash,format=raw,file={variables}
"""


async def test_flash(binary: Path, tmp_path: Path) -> None:
    """Not every KVM runs code from flash: the guest is paused."""
    folder = Path("/usr/share/OVMF")
    variables = tmp_path / "variables"
    variables.write_bytes((folder / "OVMF_VARS_4M.fd").read_bytes())
    text = UEFI.format(code=folder / "OVMF_CODE_4M.fd", variables=variables)
    async with guest(text, binary, paused=True) as one:
        for tracking in ("ring:4096", "bitmap"):
            toggled = await one.to(tracking)
            assert not toggled.running
            for address in (0xFFFFFFF0, 0xFFC00010):  # of the code's end and the variables
                said = await commands.human(one.machine.monitor, f"xp /4xb {address:#x}")
                assert len(set(said.split()[1:])) > 1
