"""A described guest, started: its memory, its slots, its workload."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from qemu_ring.dirty import Tracking
from qemu_ring.errors import DeadlineError, HostError, QemuRingError
from qemu_ring.guest import WorkloadControl, image_bytes
from qemu_ring.guest.linux import debian_kernel, initramfs, read_reports
from qemu_ring.guest.linux.report import failure
from qemu_ring.guestfile.interpretation import (
    RAM,
    linux_workload,
    memory_sizes,
    slot_address,
    workload,
)
from qemu_ring.guestfile.schema import GuestDescription, LinuxPart
from qemu_ring.machine import (
    Accelerator,
    Device,
    Disk,
    KvmCapabilities,
    Machine,
    MachineDescription,
    MemoryBackend,
    QemuBinary,
    UnnamedFile,
    find_qemu,
    probe_host,
    probe_kvm,
    probe_qemu,
    require_memory,
    require_space,
)
from qemu_ring.machine.properties import FLUSH_POLICY
from qemu_ring.memslot import FlushPolicy, PciSlots, SlotDevice
from qemu_ring.qmp import commands
from qemu_ring.verify import Block

__all__ = ["RunningGuest", "require_accelerator", "start_guest"]

_OVERHEAD = 64 << 20
"""A QEMU's own memory, about."""
_FALLBACK_TSC_HZ = 2_000_000_000
"""Where KVM does not tell; the writers' rates are then off by as much."""
_POLL_SECONDS = 0.02
_FIRMWARE_SECONDS, _LINUX_SECONDS = 60.0, 120.0


@dataclass(frozen=True, slots=True)
class RunningGuest:
    """A described guest that runs.

    Args:
        description: what it was started from.
        machine: its QEMU.
        files: what backs its memory: "ram", slots and backends by name.
        control: its workload; None for a guest without the workload firmware.
        slots: its slots, to remove and add; None where they are not ours to map: for a guest
            with a BIOS, or the destination of a migration.
    """

    description: GuestDescription
    machine: Machine
    files: Mapping[str, UnnamedFile]
    control: WorkloadControl | None = None
    slots: PciSlots | None = None

    def memory_with(self, destination: RunningGuest) -> list[Block]:
        """All memory of this guest and of the one that it is migrated to, to be compared."""
        return [
            Block(name, ours.fd, destination.files[name].fd, ours.size)
            for name, ours in self.files.items()
        ]

    async def wait_up(self, *, timeout: float | None = None) -> None:
        """Wait until its workload writes; a guest without one is up when its vCPUs run.

        Args:
            timeout: seconds; None for 60, or 120 for Linux.

        Raises:
            DeadlineError: it did not in that time.
            QemuRingError: the guest cannot go on, and says why.
        """
        linux = self.description.linux
        if self.control is not None:
            await self.control.wait_writing(timeout=timeout or _FIRMWARE_SECONDS)
        elif linux is not None and linux.workload is not None:
            await self._linux_up(timeout or _LINUX_SECONDS)

    async def _linux_up(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            serial = self.machine.text("serial")
            why = failure(serial)
            status = (await commands.query_status(self.machine.monitor)).status
            if status in ("internal-error", "guest-panicked"):
                why = why or f"its vCPUs were stopped: {status}"
            if why is not None:
                raise QemuRingError(f"the Linux guest failed: {why}", hint=_serial_hint(serial))
            if any(report.writes for report in read_reports(serial)):
                return
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"the Linux guest's program wrote nothing within {timeout:g} s",
                    hint=_serial_hint(serial),
                )
            await asyncio.sleep(_POLL_SECONDS)


def _serial_hint(serial: str) -> str:
    lines = [line.strip() for line in serial.splitlines() if line.strip()]
    if not lines:
        return "its serial port is silent; not every KVM runs Linux: try accelerator: tcg"
    return f"its serial port said last: {lines[-1][-200:]}"


@asynccontextmanager
async def start_guest(
    guest: GuestDescription,
    binary: Path | None = None,
    *,
    name: str = "guest",
    incoming: str | None = None,
    paused: bool = False,
    monitors: Sequence[socket.socket] = (),
    log_directory: Path | None = None,
) -> AsyncIterator[RunningGuest]:
    """Start a described guest; it is stopped, and its memory gone, when the context is left.

    Args:
        guest: what to start.
        binary: the QEMU; None for the patched one if it was built, else the first on PATH.
        name: what messages call it.
        incoming: for the destination of a migration: "defer", or a URI to listen on.
        paused: start with the vCPUs stopped.
        monitors: listening sockets for further QMP monitors, as in `Machine.start`.
        log_directory: as in `Machine.start`.

    Raises:
        HostError: this host cannot do it: no KVM, no ring, too little memory.
        QemuUnsuitableError: this QEMU cannot do it.
        MachineError: QEMU did not start.
    """
    binary = binary or find_qemu()
    sizes = memory_sizes(guest)
    total = sum(sizes.values())
    require_memory(total + _OVERHEAD, probe_host(), f"a guest of {total >> 20} MiB")
    if guest.memory_directory is not None:
        require_space(guest.memory_directory, total)
    kvm = await _kvm(guest)
    tsc_hz = (kvm.tsc_khz * 1000 if kvm else 0) or _FALLBACK_TSC_HZ
    accelerator = await _accelerator(guest, binary, kvm)
    wanted = workload(guest)
    async with AsyncExitStack() as stack:
        files = {
            block: stack.enter_context(UnnamedFile(block, size, directory=guest.memory_directory))
            for block, size in sizes.items()
        }
        devices = [
            SlotDevice(MemoryBackend(slot.name, files[slot.name]), slot_address(guest, slot.name))
            for slot in guest.slots
        ]
        ours_to_map = guest.workload is not None and incoming is None
        map_first = ours_to_map and bool(devices)
        kernel, initrd, append = await _linux(guest.linux)
        description = MachineDescription(
            accelerator=accelerator,
            memory=MemoryBackend(RAM, files[RAM]),
            machine=guest.machine,
            cpu=guest.cpu,
            vcpus=guest.vcpus,
            backends=(
                *(device.backend for device in devices),
                *(MemoryBackend(b.id, files[b.id], share=b.share) for b in guest.backends),
            ),
            devices=(
                *(device.device() for device in devices),
                *(Device(device.driver, device.properties) for device in guest.devices),
            ),
            firmware=guest.firmware if wanted is None else image_bytes(),
            kernel=kernel,
            initrd=initrd,
            append=append,
            disks=tuple(Disk(d.path, d.format, d.read_only) for d in guest.disks),
            fw_cfg={**_fw_cfg(guest), **(wanted.fw_cfg(tsc_hz) if wanted else {})},
            incoming=incoming,
            paused=paused or map_first,
            trace=tuple(guest.trace),
            log=tuple(guest.log),
            extra=tuple(guest.extra),
        )
        machine = await stack.enter_async_context(
            await Machine.start(
                binary, description, name=name, monitors=monitors, log_directory=log_directory
            )
        )
        control = None
        if wanted is not None:
            memory = files[RAM].fd
            control = stack.enter_context(WorkloadControl(memory, wanted, tsc_hz))
        slots = PciSlots(machine.monitor, devices) if ours_to_map else None
        for slot in guest.slots if slots else ():
            assert slots is not None
            assert slot.address is not None
            await slots.add(slot.name, slot.address)
        if map_first and not paused:
            await commands.cont(machine.monitor)
        yield RunningGuest(guest, machine, files, control, slots)


async def _kvm(guest: GuestDescription) -> KvmCapabilities | None:
    """What the host's KVM can do; for TCG, too, because it tells the time stamp counter's rate."""
    try:
        return await asyncio.to_thread(probe_kvm)
    except HostError:
        if guest.accelerator == "kvm":
            raise
        return None


async def _accelerator(
    guest: GuestDescription, binary: Path, kvm: KvmCapabilities | None
) -> Accelerator:
    if kvm is None or guest.accelerator == "tcg":
        return Accelerator("tcg", guest.accelerator_properties)
    tracking = guest.tracking or Tracking()
    qemu = await probe_qemu(binary)
    require_accelerator(kvm, qemu, tracking, guest.flush_policy)
    properties = {**tracking.accelerator(qemu).properties, **guest.accelerator_properties}
    if guest.flush_policy is not None:
        properties[FLUSH_POLICY] = guest.flush_policy.value
    return Accelerator("kvm", properties)


def require_accelerator(
    kvm: KvmCapabilities, qemu: QemuBinary, tracking: Tracking, policy: FlushPolicy | None
) -> None:
    """Check that this host and this QEMU can track and flush dirty memory so.

    Raises:
        HostError: this host's KVM has no dirty ring, or only smaller ones.
        QemuUnsuitableError: this QEMU has no KVM, no ring, or no flush policies.
    """
    tracking.require(kvm)
    tracking.accelerator(qemu)
    if policy is not None:
        qemu.require_flush_policies()


async def _linux(linux: LinuxPart | None) -> tuple[Path | None, Path | None, str | None]:
    """Kernel, initrd and command line."""
    if linux is None:
        return None, None, None
    kernel = linux.kernel or await debian_kernel()
    if linux.workload is None:
        return kernel, linux.initrd, linux.append
    return kernel, await initramfs(), f"{linux.append} {linux_workload(linux.workload).append()}"


def _fw_cfg(guest: GuestDescription) -> dict[str, bytes]:
    files = {}
    for name, part in guest.fw_cfg.items():
        files[name] = part.file.read_bytes() if part.file else (part.text or "").encode()
    return files
