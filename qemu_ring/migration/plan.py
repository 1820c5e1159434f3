"""What a migration is to be: data only, in QEMU's own terms."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from qemu_ring.errors import UsageError
from qemu_ring.migration.channels.channel import Channel, Fd, File, Tcp
from qemu_ring.migration.errors import GuestAt, PlanError
from qemu_ring.migration.goal import Goal
from qemu_ring.migration.values import (
    require_at_least,
    require_bandwidth,
    require_between,
    require_downtime,
    require_power_of_two,
    require_switchover_bandwidth,
    require_whole_mib,
)

__all__ = [
    "AbortRules",
    "AutoConverge",
    "BackgroundSnapshot",
    "Compression",
    "CprReboot",
    "CprTransfer",
    "DirtyLimit",
    "Kind",
    "MappedRam",
    "MigrationPlan",
    "Multifd",
    "Postcopy",
    "Precopy",
    "Tls",
    "Xbzrle",
    "ZeroPage",
]

Compression = Literal["none", "zlib", "zstd", "qatzip", "qpl", "uadk"]
ZeroPage = Literal["none", "legacy", "multifd"]
_LEVELS = {"zlib": (0, 9), "zstd": (0, 20), "qatzip": (1, 9)}


@dataclass(frozen=True, slots=True)
class Precopy:
    """Send memory pass by pass while the guest runs; switch over when little is left."""


@dataclass(frozen=True, slots=True)
class Postcopy:
    """Switch over early; the destination fetches what it lacks from the source.

    Args:
        after_passes: passes of precopy before that, at least 1.
        preempt: let urgent pages overtake on a channel of their own (postcopy-preempt).
        max_bandwidth: bytes a second after the switchover, from 10 on; 0 for no limit, None
            for QEMU's own.
    """

    after_passes: int = 1
    preempt: bool = False
    max_bandwidth: int | None = None

    def __post_init__(self) -> None:
        require_at_least("kind.after_passes", self.after_passes, 1)
        require_bandwidth("kind.max_bandwidth", self.max_bandwidth)


@dataclass(frozen=True, slots=True)
class BackgroundSnapshot:
    """Save the guest as it is now, while it runs on; to a file or a command."""


@dataclass(frozen=True, slots=True)
class CprReboot:
    """Save a guest whose memory outlives its QEMU (mode cpr-reboot); it is stopped meanwhile.

    Args:
        ignore_shared: leave memory in `share=on` files where it is (x-ignore-shared); the
            QEMU that restores it has to be given the same files.
    """

    ignore_shared: bool = True


@dataclass(frozen=True, slots=True)
class CprTransfer:
    """Hand the guest's memory to a new QEMU on this host (mode cpr-transfer).

    Only for `CprTransferMigration`, which has the new QEMU started. Both need
    `-machine aux-ram-share=on` and memory backends with `share=on`.
    """


Kind = Precopy | Postcopy | BackgroundSnapshot | CprReboot | CprTransfer


@dataclass(frozen=True, slots=True)
class Multifd:
    """Send pages by several connections.

    Args:
        channels: how many, 1 to 255.
        compression: of pages; what QEMU was built with.
        level: of zlib or zstd; None for QEMU's own.
        zero_copy: have the kernel send pages from where they are (MSG_ZEROCOPY), by a `Tcp`
            channel, as they are: without compression, xbzrle, or TLS. What is under way is locked
            memory, which QEMU's process has to be allowed. Only the source does it.
    """

    channels: int = 2
    compression: Compression = "none"
    level: int | None = None
    zero_copy: bool = False

    def __post_init__(self) -> None:
        require_between("multifd.channels", self.channels, 1, 255)
        if self.zero_copy and self.compression != "none":
            raise PlanError("multifd.zero_copy", "sends pages as they are: none are compressed")
        if self.level is not None and self.compression == "none":
            raise PlanError("multifd.level", "needs a compression", hint="such as zlib or zstd")
        if self.compression in _LEVELS:
            require_between("multifd.level", self.level, *_LEVELS[self.compression])


@dataclass(frozen=True, slots=True)
class Xbzrle:
    """Send the difference to a page's last copy; `cache_size` in bytes, a power of two."""

    cache_size: int = 64 << 20

    def __post_init__(self) -> None:
        require_power_of_two("xbzrle.cache_size", self.cache_size)


@dataclass(frozen=True, slots=True)
class MappedRam:
    """Give each page its place in the file (mapped-ram), so that it stays as small as RAM.

    Args:
        direct_io: write past the page cache.
    """

    direct_io: bool = False


@dataclass(frozen=True, slots=True)
class AutoConverge:
    """Throttle all vCPUs alike until the migration converges. All in percent.

    Args:
        initial: the first throttle.
        increment: what each step adds.
        maximum: the most.
        trigger_threshold: dirtied of sent bytes in a pass above which it throttles.
    """

    initial: int = 20
    increment: int = 10
    maximum: int = 99
    trigger_threshold: int = 50

    def __post_init__(self) -> None:
        require_between("throttle.initial", self.initial, 1, 99)
        require_between("throttle.increment", self.increment, 1, 99)
        require_between("throttle.maximum", self.maximum, self.initial, 99)
        require_between("throttle.trigger_threshold", self.trigger_threshold, 1, 100)


@dataclass(frozen=True, slots=True)
class DirtyLimit:
    """Throttle only those vCPUs that dirty much; needs the dirty ring.

    Args:
        vcpu_limit: the dirty rate to hold each vCPU to, bytes a second; whole MiB.
        period: seconds between measurements, at most 1.
        trigger_threshold: percent, as in `AutoConverge`.
    """

    vcpu_limit: int = 1 << 20
    period: float = 1.0
    trigger_threshold: int = 50

    def __post_init__(self) -> None:
        require_whole_mib("throttle.vcpu_limit", self.vcpu_limit)
        require_between("throttle.period", self.period, 0.001, 1)
        require_between("throttle.trigger_threshold", self.trigger_threshold, 1, 100)


@dataclass(frozen=True, slots=True)
class Tls:
    """Encrypt, and check both sides' X.509 certificates.

    Args:
        source_directory: ca-cert.pem, client-cert.pem and client-key.pem; as the source finds
            it, so best absolute.
        destination_directory: ca-cert.pem, server-cert.pem and server-key.pem; None for the
            same directory.
        hostname: the destination's name in its certificate; None for the channel's host, which
            only `Tcp` has.
    """

    source_directory: Path
    destination_directory: Path | None = None
    hostname: str | None = None


@dataclass(frozen=True, slots=True)
class AbortRules:
    """When to cancel a migration that does not get on; the guest stays at the source.

    None of them counts after the switchover. None means no such rule.

    Args:
        seconds: since its start.
        iterations: passes over memory.
        no_progress_iterations: passes in a row that each began with no less to send than the
            best before them.
    """

    seconds: float | None = None
    iterations: int | None = None
    no_progress_iterations: int | None = None

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and value <= 0:
                raise UsageError(f"abort rule {one.name}: {value} is not greater than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationPlan:
    """One migration, whatever its kind. What is None stays as it is set in QEMU.

    Args:
        kind: precopy, postcopy, ...
        channel: what the bytes go through.
        multifd, xbzrle, mapped_ram, tls: see there; None does without.
        throttle: what to do about a guest that dirties faster than can be sent.
        zero_page: who looks for zero pages.
        max_bandwidth: bytes a second, from 10 on; 0 for no limit.
        downtime_limit: seconds that the guest may stand still, 0.001 to 2000.
        switchover_bandwidth: bytes a second that QEMU is to reckon with for the switchover,
            instead of what it measures (avail-switchover-bandwidth), from 1000 on; 0 for
            what it measures. Compression makes it measure too little: it counts compressed
            bytes sent, and whole pages to send.
        return_path: let the destination tell the source that it has all, before the source
            calls it completed; None wherever the channel goes both ways.
        switchover_ack: switch over only when the destination is ready.
        pause_before_switchover: wait before the switchover, with the guest stopped, until
            `Migration.complete` is called.
        abort: when to give up.
        goal: a time and a downtime to keep to, and what may be done for it; for precopy. It takes
            the place of `downtime_limit`.
        leave_paused: leave the guest paused at the destination.
        if_stale: where the guest goes on if verification found stale pages at the destination:
            at the source, which still has all of its memory; at the destination; or nowhere,
            so that both can be looked at.
    """

    kind: Kind = field(default_factory=Precopy)
    channel: Channel = field(default_factory=Fd)
    multifd: Multifd | None = None
    xbzrle: Xbzrle | None = None
    mapped_ram: MappedRam | None = None
    tls: Tls | None = None
    throttle: AutoConverge | DirtyLimit | None = None
    zero_page: ZeroPage | None = None
    max_bandwidth: int | None = None
    downtime_limit: float | None = None
    switchover_bandwidth: int | None = None
    return_path: bool | None = None
    switchover_ack: bool = False
    pause_before_switchover: bool = False
    abort: AbortRules = field(default_factory=AbortRules)
    goal: Goal | None = None
    leave_paused: bool = False
    if_stale: GuestAt = GuestAt.SOURCE

    def __post_init__(self) -> None:
        require_bandwidth("max_bandwidth", self.max_bandwidth)
        require_downtime("downtime_limit", self.downtime_limit)
        require_switchover_bandwidth("switchover_bandwidth", self.switchover_bandwidth)
        if isinstance(self.kind, BackgroundSnapshot | CprReboot) and self.channel.bidirectional:
            raise UsageError(
                f"{type(self.kind).__name__} saves to a file", hint="give it a File channel"
            )
        self._check_goal()
        if self.postcopy is not None and not self.channel.bidirectional:
            raise UsageError(
                "postcopy needs a channel that goes both ways", hint="use unix, tcp or fd"
            )
        several = self.multifd is not None or (
            isinstance(self.kind, Postcopy) and self.kind.preempt
        )
        if several and not self.channel.multiple:
            raise UsageError(f"{self.channel.words} is a single connection", hint="use tcp or unix")
        if self.mapped_ram is not None and not isinstance(self.channel, File):
            raise UsageError("mapped-ram goes to a file only", hint="give it a File channel")
        if self.if_stale not in (GuestAt.SOURCE, GuestAt.DESTINATION, GuestAt.NOWHERE):
            raise UsageError(f"no guest can be made to go on {self.if_stale}")
        self._check_tls()
        self._check_zero_copy()

    def _check_zero_copy(self) -> None:
        if self.multifd is None or not self.multifd.zero_copy:
            return
        if self.xbzrle is not None:
            raise PlanError("multifd.zero_copy", "sends pages as they are: no xbzrle")
        if self.tls is not None:
            raise PlanError("multifd.zero_copy", "sends pages as they are: they are not encrypted")
        if not isinstance(self.channel, Tcp):
            raise PlanError(
                "multifd.zero_copy",
                f"needs the channel tcp, and this one is {self.channel.words}",
                hint="such as tcp:HOST:PORT",
            )

    def _check_goal(self) -> None:
        goal = self.goal
        if goal is None:
            return
        if not isinstance(self.kind, Precopy):
            raise PlanError(
                "goal.within",
                f"is for precopy, not for {self.kind_name}",
                hint="postcopy can be what is done when it would not be kept",
            )
        if self.downtime_limit is not None:
            raise PlanError("downtime_limit", "cannot be beside a goal, which has its own")
        if self.throttle is not None and goal.throttles:
            raise PlanError(
                "throttle",
                "cannot be beside a goal that throttles by itself where that is needed",
                hint="choose the means by what the goal does then",
            )

    def _check_tls(self) -> None:
        if self.tls is None:
            return
        if not self.channel.bidirectional:
            # QEMU would wait for the handshake's answer, some versions for good.
            raise UsageError(
                f"TLS cannot go by {self.channel.words}: its handshake needs an answer",
                hint="use tcp, unix or fd",
            )
        if self.tls.hostname is None and not self.channel.has_host:
            raise UsageError(
                f"TLS by {self.channel.words} needs the name in the destination's certificate",
                hint="give it as the hostname",
            )

    @property
    def kind_name(self) -> str:
        """The kind in words, such as background-snapshot."""
        name = type(self.kind).__name__
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-")

    @property
    def postcopy(self) -> Postcopy | None:
        """How it switches over to postcopy, if it ever may."""
        if isinstance(self.kind, Postcopy):
            return self.kind
        if self.goal is not None and self.goal.then == "postcopy":
            return Postcopy(max_bandwidth=self.goal.postcopy_bandwidth)
        return None

    @property
    def uses_return_path(self) -> bool:
        """Whether the destination answers the source."""
        if self.return_path is None:
            return self.channel.bidirectional
        return self.return_path
