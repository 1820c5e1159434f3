"""What QMP commands return, as far as this package reads it.

Field names are QMP's with underscores for dashes; where a field has a unit, its name or comment
says so. Members that a model does not list are ignored, and members that only some QEMU
versions send are optional.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AddedFd",
    "CapabilityState",
    "CharDevice",
    "CpuInfo",
    "FdSet",
    "KvmInfo",
    "MemoryBackendInfo",
    "MigrationInfo",
    "MigrationRam",
    "MigrationStatus",
    "PciBridge",
    "PciBus",
    "PciDevice",
    "PciId",
    "PciRegion",
    "PropertyInfo",
    "QemuVersion",
    "QmpModel",
    "SocketAddress",
    "StatusInfo",
    "VersionInfo",
    "XbzrleCache",
]


class QmpModel(BaseModel):
    """Base of what QMP returns: frozen, dashes in QMP's names, members unknown here ignored."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )


class QemuVersion(QmpModel):
    """QEMU's own version number."""

    major: int
    minor: int
    micro: int

    @property
    def triple(self) -> tuple[int, int, int]:
        """Major, minor, micro: a tuple compares as versions do."""
        return self.major, self.minor, self.micro


class VersionInfo(QmpModel):
    """query-version, and the greeting's version."""

    qemu: QemuVersion
    package: str = ""


class AddedFd(QmpModel):
    """add-fd: the set that has the descriptor, and its number in QEMU."""

    fdset_id: int
    fd: int


class FdSet(QmpModel):
    """query-fdsets: a set of descriptors that QEMU opens as /dev/fdset/N."""

    class Entry(QmpModel):
        """One of them."""

        fd: int
        opaque: str = ""

    fdset_id: int
    fds: tuple[Entry, ...] = ()


class StatusInfo(QmpModel):
    """query-status: QEMU's run state."""

    status: str
    running: bool


class KvmInfo(QmpModel):
    """query-kvm: whether KVM is in use, and whether this binary was built with it."""

    enabled: bool
    present: bool


class CpuInfo(QmpModel):
    """query-cpus-fast: one vCPU; `thread_id` is the host's thread."""

    cpu_index: int
    thread_id: int
    qom_path: str
    target: str = ""


class MigrationStatus(str, Enum):
    """The state of a migration. A state that is not listed here keeps QEMU's name for it."""

    NONE = "none"
    SETUP = "setup"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    ACTIVE = "active"
    POSTCOPY_DEVICE = "postcopy-device"
    POSTCOPY_ACTIVE = "postcopy-active"
    POSTCOPY_PAUSED = "postcopy-paused"
    POSTCOPY_RECOVER_SETUP = "postcopy-recover-setup"
    POSTCOPY_RECOVER = "postcopy-recover"
    COMPLETED = "completed"
    FAILING = "failing"
    FAILED = "failed"
    COLO = "colo"
    PRE_SWITCHOVER = "pre-switchover"
    DEVICE = "device"
    WAIT_UNPLUG = "wait-unplug"

    @classmethod
    def _missing_(cls, value: object) -> MigrationStatus | None:
        if not isinstance(value, str):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = "UNKNOWN"
        unknown._value_ = value
        return unknown

    def __reduce_ex__(self, protocol: object) -> tuple[type[MigrationStatus], tuple[str]]:
        # By value: Python 3.11.0 to 3.11.3 pickle by name, which an unknown state has not.
        return self.__class__, (self.value,)

    # The value in print, whatever the Python version makes of mixed-in enums.
    __str__ = str.__str__

    @property
    def is_final(self) -> bool:
        """Whether the migration is over, for good or ill."""
        return self in {
            MigrationStatus.COMPLETED,
            MigrationStatus.FAILED,
            MigrationStatus.CANCELLED,
        }

    @property
    def is_active(self) -> bool:
        """Whether a migration is under way; so it is in a state that is not known here."""
        return self is not MigrationStatus.NONE and not self.is_final


class CapabilityState(QmpModel):
    """query-migrate-capabilities: one migration capability, on or off."""

    capability: str
    state: bool


class MigrationRam(QmpModel):
    """query-migrate: what has become of guest RAM. Sizes in bytes."""

    transferred: int
    remaining: int
    total: int
    duplicate: int
    """Zero pages, in pages."""
    normal: int
    """Pages sent whole, in pages."""
    normal_bytes: int
    dirty_pages_rate: int
    """Pages dirtied a second, as of the last sync."""
    mbps: float
    """Throughput in megabits a second."""
    dirty_sync_count: int
    """How often the dirty log was harvested."""
    page_size: int
    postcopy_requests: int = 0
    multifd_bytes: int = 0
    pages_per_second: int = 0
    precopy_bytes: int | None = None
    downtime_bytes: int | None = None
    postcopy_bytes: int | None = None
    dirty_sync_missed_zero_copy: int | None = None
    x_absorbed_pages: int | None = None
    """Pages that were dirty again when they were sent; of a QEMU with the series' part `lab`."""


class XbzrleCache(QmpModel):
    """query-migrate: what XBZRLE, which sends the difference to a cached page, has done."""

    cache_size: int
    """Bytes."""
    bytes: int
    """Bytes sent encoded."""
    pages: int
    cache_miss: int
    """Pages sent whole because the cache had no older copy."""
    overflow: int
    """Pages whose encoding was longer than the page."""


class SocketAddress(QmpModel):
    """Where a destination listens; `type` is inet, unix, vsock or fd."""

    type: str
    host: str = ""
    port: str = ""
    path: str = ""


class MigrationInfo(QmpModel):
    """query-migrate. `status` and the rest are None before the first migration. Times in ms."""

    status: MigrationStatus | None = None
    ram: MigrationRam | None = None
    total_time_ms: int | None = Field(None, alias="total-time")
    downtime_ms: int | None = Field(None, alias="downtime")
    expected_downtime_ms: int | None = Field(None, alias="expected-downtime")
    setup_time_ms: int | None = Field(None, alias="setup-time")
    error_desc: str | None = None
    blocked_reasons: tuple[str, ...] = ()
    cpu_throttle_percentage: int | None = None
    xbzrle_cache: XbzrleCache | None = None
    socket_address: tuple[SocketAddress, ...] = ()
    """A destination's, while it waits for its source."""
    dirty_limit_throttle_time_per_round_us: int | None = Field(
        None, alias="dirty-limit-throttle-time-per-round"
    )
    dirty_limit_ring_full_time_us: int | None = Field(None, alias="dirty-limit-ring-full-time")

    @property
    def is_active(self) -> bool:
        """Whether a migration is under way."""
        return self.status is not None and self.status.is_active

    @property
    def is_final(self) -> bool:
        """Whether a migration has completed, failed or been cancelled."""
        return self.status is not None and self.status.is_final


class PciId(QmpModel):
    """A PCI device's numbers."""

    vendor: int
    device: int
    subsystem: int | None = None
    subsystem_vendor: int | None = None


class PciRegion(QmpModel):
    """One BAR. `address` is -1 while it is unmapped; `size` in bytes."""

    bar: int
    type: str
    address: int
    size: int
    prefetch: bool | None = None
    mem_type_64: bool | None = Field(None, alias="mem_type_64")

    @property
    def mapped(self) -> bool:
        """Whether the BAR has an address and its decoding is on."""
        return self.address != -1


class PciDevice(QmpModel):
    """One PCI function. `qdev_id` is the ``id=`` it was made with, empty if none."""

    bus: int
    slot: int
    function: int
    id: PciId
    qdev_id: str = Field("", alias="qdev_id")
    regions: tuple[PciRegion, ...] = ()
    pci_bridge: PciBridge | None = Field(None, alias="pci_bridge")


class PciBridge(QmpModel):
    """What is behind a PCI bridge; nothing until firmware has numbered its bus."""

    devices: tuple[PciDevice, ...] = ()


class PciBus(QmpModel):
    """query-pci: a root bus and its devices."""

    bus: int
    devices: tuple[PciDevice, ...]


class MemoryBackendInfo(QmpModel):
    """query-memdev: one memory backend; `size` in bytes."""

    id: str | None = None
    size: int
    merge: bool
    dump: bool
    prealloc: bool
    share: bool = False
    reserve: bool | None = None
    policy: str
    host_nodes: tuple[int, ...] = ()


class PropertyInfo(QmpModel):
    """One property of a QOM type or device type."""

    name: str
    type: str
    description: str = ""
    default_value: Any = None


class CharDevice(QmpModel):
    """query-chardev: one character device."""

    label: str
    filename: str
    frontend_open: bool
