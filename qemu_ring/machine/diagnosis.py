"""What this host and a QEMU can do for this package, and how to get what is missing."""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from enum import Enum

from qemu_ring.errors import HostError, QemuRingError
from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine.binary import QemuBinary, find_qemu, probe_qemu
from qemu_ring.machine.description import Accelerator, MachineDescription, MemoryBackend
from qemu_ring.machine.full_ring import goes_on_with_full_ring
from qemu_ring.machine.host import Host, probe_host
from qemu_ring.machine.kvm import KvmCapabilities, probe_kvm
from qemu_ring.machine.machine import Machine
from qemu_ring.machine.memory import UnnamedFile

__all__ = ["Check", "Diagnosis", "Finding", "diagnose"]

_MIB = 1 << 20
_RING_ENTRIES = 4096
_TSC_HZ = 1_000_000_000  # of no matter: the guest's writer is not throttled


class Finding(Enum):
    """What a check found."""

    OK = "ok"
    MISSING = "missing"
    """Needed, and not there."""
    ABSENT = "absent"
    """Not there, and not needed for the main job."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Args:
        name: what.
        finding: whether it is there.
        detail: what was seen.
        remedy: how to get it; empty if it is there, or cannot be had.
    """

    name: str
    finding: Finding
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that was looked at; `kvm` and `qemu` are None where there is none."""

    host: Host
    kvm: KvmCapabilities | None
    qemu: QemuBinary | None
    checks: tuple[Check, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing that is needed is missing."""
        return all(check.finding is not Finding.MISSING for check in self.checks)


async def diagnose(qemu: str | None = None) -> Diagnosis:
    """Look at this host, and at a QEMU: the one named, else the first on PATH.

    Raises:
        UsageError: the path named is not a program.
    """
    host = probe_host()
    checks: list[Check] = []
    kvm = await _kvm(checks)
    if kvm is not None:
        checks += _capabilities(kvm)
    checks.append(_tool("setpriv", "util-linux", "so that no QEMU outlives its controller"))
    checks.append(Check("memory", Finding.OK, f"{host.memory_available_bytes // _MIB} MiB free"))
    binary = await _qemu(qemu, checks)
    if binary is not None:
        checks += _features(binary)
    if kvm is not None and binary is not None and binary.kvm:
        checks.append(await _start(binary, kvm))
        if kvm.dirty_ring_max_entries and binary.ring_property and checks[-1].finding is Finding.OK:
            checks.append(await _full_ring(binary))
    return Diagnosis(host, kvm, binary, tuple(checks))


async def _kvm(checks: list[Check]) -> KvmCapabilities | None:
    try:
        kvm = await asyncio.to_thread(probe_kvm)
    except HostError as error:
        checks.append(Check("KVM", Finding.MISSING, error.message, error.hint))
        return None
    checks.append(Check("KVM", Finding.OK, f"/dev/kvm, API version {kvm.api_version}"))
    return kvm


def _capabilities(kvm: KvmCapabilities) -> list[Check]:
    ring = kvm.dirty_ring_max_entries
    return [
        Check("dirty ring", Finding.OK, f"up to {ring} entries a vCPU")
        if ring
        else Check("dirty ring", Finding.MISSING, "this KVM has none", "run Linux 5.11 or newer"),
        _optional(kvm.readonly_mem, "read-only memslots", "run Linux 3.7 or newer"),
        _optional(kvm.manual_protect, "manual dirty log protect", "run Linux 5.3 or newer"),
        _optional(
            kvm.initially_set,
            "dirty log initially set",
            "run Linux 5.7 or newer",
            yes="yes: in bitmap mode a slot that is added starts all dirty, which hides losses",
        ),
        _optional(kvm.smm, "SMM", "", yes="yes: guests have a second address space of memslots"),
    ]


def _optional(there: bool, name: str, remedy: str, *, yes: str = "yes") -> Check:
    return Check(name, Finding.OK, yes) if there else Check(name, Finding.ABSENT, "no", remedy)


def _tool(command: str, package: str, purpose: str) -> Check:
    path = shutil.which(command)
    if path is not None:
        return Check(command, Finding.OK, path)
    return Check(
        command, Finding.MISSING, f"not installed; needed {purpose}", f"apt-get install {package}"
    )


async def _qemu(path: str | None, checks: list[Check]) -> QemuBinary | None:
    try:
        binary = await probe_qemu(find_qemu(path))
    except QemuRingError as error:
        if path is not None and not isinstance(error, HostError):
            raise
        checks.append(Check("QEMU", Finding.MISSING, error.message, error.hint))
        return None
    checks.append(Check("QEMU", Finding.OK, f"{binary.path}, version {binary.version}"))
    return binary


def _features(binary: QemuBinary) -> list[Check]:
    checks = []
    for name, require in (
        ("QEMU: KVM", binary.require_kvm),
        ("QEMU: dirty ring", binary.require_ring),
        ("QEMU: slot removal on pc", lambda: binary.require_slot_removal("pc")),
        ("QEMU: slot removal on q35", lambda: binary.require_slot_removal("q35")),
    ):
        try:
            require()
        except QemuRingError as error:
            checks.append(Check(name, Finding.MISSING, error.message, error.hint))
        else:
            checks.append(Check(name, Finding.OK, "yes"))
    detail = "yes" if binary.flush_policies else "no: slots are removed the way upstream does"
    finding = Finding.OK if binary.flush_policies else Finding.ABSENT
    return [*checks, Check("QEMU: memslot flush policies", finding, detail)]


async def _start(binary: QemuBinary, kvm: KvmCapabilities) -> Check:
    """Start a guest for real, with the ring if there is one, and wait for its first write."""
    name = "a guest starts"
    ring = binary.ring_property if kvm.dirty_ring_max_entries else None
    accelerator = Accelerator("kvm", {} if ring is None else {ring: _RING_ENTRIES})
    region = Region("ram", 1 * _MIB, 1 * _MIB)
    plain = Workload((region,), (Stream(),))
    workload = Workload((region,), (Stream(Pattern.LOOP, plain.span("ram")),))
    with UnnamedFile("ram", 2 * _MIB) as memory:
        description = MachineDescription(
            accelerator=accelerator,
            memory=MemoryBackend("ram", memory),
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(_TSC_HZ),
        )
        started = time.monotonic()
        try:
            async with await Machine.start(binary.path, description, name="probe"):
                with WorkloadControl(memory.fd, workload, _TSC_HZ) as control:
                    await control.wait_writing()
                    milliseconds = (time.monotonic() - started) * 1000
        except QemuRingError as error:
            return Check(name, Finding.MISSING, error.message, error.hint)
    how = "with the bitmap" if ring is None else f"with a ring of {_RING_ENTRIES}"
    return Check(name, Finding.OK, f"{how}; it wrote {milliseconds:.0f} ms after QEMU's start")


async def _full_ring(binary: QemuBinary) -> Check:
    """Fill a guest's ring in ring 0, which some KVMs emulate."""
    name = "a ring gets full in ring 0"
    try:
        goes_on = await goes_on_with_full_ring(binary)
    except QemuRingError as error:
        return Check(name, Finding.ABSENT, f"not known: {error.message}", error.hint)
    if goes_on is None:
        return Check(name, Finding.ABSENT, "not known: this QEMU cannot be made to do that")
    if goes_on:
        return Check(name, Finding.OK, "the guest goes on")
    return Check(
        name,
        Finding.ABSENT,
        "the guest hangs for good: this KVM emulates ring 0, and pushes entries past the end of "
        "a full dirty ring, where this QEMU does not find them; the workload firmware, which "
        "stays in ring 3, is not concerned",
        "for guests with a kernel or firmware of their own use the bitmap, or a QEMU by "
        "`qemu-ring build`",
    )
