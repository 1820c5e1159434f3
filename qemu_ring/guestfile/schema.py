"""What can stand in a guest's description. Descriptions of fields reach editors by JSON Schema."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qemu_ring.guest import Pattern
from qemu_ring.guest.linux import LinuxPattern
from qemu_ring.guestfile.fields import (
    ExistingFile,
    ExistingFolder,
    FirmwarePattern,
    GuestPattern,
    Part,
    Policy,
    Property,
    Seconds,
    Size,
    TrackingMode,
)

__all__ = [
    "BackendPart",
    "DevicePart",
    "DiskPart",
    "FwCfgPart",
    "GuestDescription",
    "HotPart",
    "LinuxPart",
    "LinuxWorkloadPart",
    "RegionPart",
    "SlotPart",
    "StreamPart",
    "WorkloadPart",
]


class SlotPart(Part):
    """Memory behind an ivshmem-plain device's BAR: a memslot that can be removed and added."""

    name: str
    size: Size
    """A power of two."""
    address: Size | None = None
    """Where it is mapped at start, a multiple of its size; for a guest with a workload."""


class RegionPart(Part):
    """Guest-physical memory to write to: a range of RAM, or a slot."""

    name: str
    address: Size | None = None
    """In RAM, at 1 MiB or above."""
    size: Size | None = None
    slot: str | None = None
    """The slot's name, in place of address and size."""


class HotPart(Part):
    """Pages that hot-cold writes often."""

    region: str | None = None
    """By default the stream's."""
    first: int = Field(0, ge=0)
    pages: int = Field(ge=1)


class StreamPart(Part):
    """What one vCPU does."""

    pattern: FirmwarePattern = Pattern.LOOP
    region: str | None = None
    """The region that it writes to; by default the first."""
    first: int = Field(0, ge=0)
    """First page within the region."""
    pages: int | None = Field(None, ge=1)
    """By default all that follow the first."""
    pages_per_second: float | None = Field(None, gt=0)
    """By default as fast as it can."""
    seed: int = 1
    skew: float = 0.99
    """Exponent of zipf."""
    hot: HotPart | None = None
    hot_run: int = 1
    """Writes to the hot pages, in turn with the others."""
    cold_run: int = 1
    cold_once: bool = False
    slots: list[str] = Field(default_factory=list)
    """For pci-toggle: the slots to remove and add."""
    rest_seconds: Seconds = 0.0
    """For pci-toggle: time between two cycles."""


class WorkloadPart(Part):
    """The workload firmware: regions of memory, and a stream for each vCPU."""

    regions: list[RegionPart] = Field(min_length=1)
    streams: list[StreamPart] = Field(min_length=1)
    """One for each vCPU, in order; a vCPU without one is idle."""


class LinuxWorkloadPart(Part):
    """The program that writes memory in a Linux guest."""

    size: Size
    """Bytes that it writes to, all CPUs together."""
    pattern: GuestPattern = LinuxPattern.LOOP
    pages_per_second: float | None = Field(None, ge=1)
    """All CPUs together; by default as fast as they can."""
    report_seconds: Seconds = Field(1.0, ge=0.01)
    """Time between two reports on the serial port."""


class LinuxPart(Part):
    """A Linux kernel, started directly."""

    kernel: ExistingFile | None = None
    """By default Debian's kernel for virtual machines, fetched once."""
    initrd: ExistingFile | None = None
    append: str = "console=ttyS0 quiet"
    """The kernel's command line."""
    workload: LinuxWorkloadPart | None = None
    """Start our program from an initramfs of ours, in place of an initrd."""


class DevicePart(Part):
    """`-device`."""

    driver: str
    properties: dict[str, Property] = Field(default_factory=dict)


class BackendPart(Part):
    """Further guest memory, for a device that names it."""

    id: str
    size: Size
    share: bool = True


class DiskPart(Part):
    """A disk image on virtio."""

    path: ExistingFile
    format: Literal["raw", "qcow2"] = "raw"
    read_only: bool = False


class FwCfgPart(Part):
    """A file for the guest: its text, or the file that has it."""

    text: str | None = None
    file: ExistingFile | None = None


class GuestDescription(Part):
    """A guest, as a YAML file describes it."""

    memory: Size
    """System RAM."""
    memory_directory: ExistingFolder | None = None
    """Where guest memory lives, such as /dev/shm; by default memory without a name."""
    vcpus: int = Field(1, ge=1, le=288)
    machine: str = "pc"
    """Machine type and its options, such as q35,smm=off."""
    cpu: str | None = None
    accelerator: Literal["kvm", "tcg"] = "kvm"
    accelerator_properties: dict[str, Property] = Field(default_factory=dict)
    """Further properties of -accel."""
    tracking: TrackingMode | None = None
    """How KVM tracks dirty pages: bitmap, or ring:SIZE."""
    flush_policy: Policy | None = None
    """How memslots are removed; needs a patched QEMU."""
    workload: WorkloadPart | None = None
    linux: LinuxPart | None = None
    firmware: ExistingFile | None = None
    """An image for -bios, of your own."""
    slots: list[SlotPart] = Field(default_factory=list, max_length=8)
    backends: list[BackendPart] = Field(default_factory=list)
    devices: list[DevicePart] = Field(default_factory=list)
    disks: list[DiskPart] = Field(default_factory=list)
    fw_cfg: dict[str, FwCfgPart] = Field(default_factory=dict)
    """Files for the guest by name, such as opt/org.example/name."""
    trace: list[str] = Field(default_factory=list)
    """Patterns of QEMU's trace events to log."""
    log: list[str] = Field(default_factory=list)
    """QEMU's log items, as -d takes them."""
    extra: list[str] = Field(default_factory=list)
    """Further arguments for QEMU, as they are."""
