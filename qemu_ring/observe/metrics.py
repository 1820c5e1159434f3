"""What is seen of guests, as metrics for Prometheus; needs what the extra `metrics` installs.

Names and units follow Prometheus' conventions: base units, `_total` for what only grows as long as
a QEMU runs, `_ratio` for shares from 0 to 1, `_info` for what there is to know of a thing. Each
metric has the labels `guest`, its name or else its socket, and `socket`. Of a guest that does not
answer there is `qemu_ring_guest_up` alone: older figures would look like new ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from qemu_ring.observe.snapshot import (
    FlushSnapshot,
    GuestSnapshot,
    GuestState,
    MigrationSnapshot,
    Presence,
    RingsSnapshot,
    SlotsSnapshot,
)
from qemu_ring.qmp import MigrationStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

__all__ = ["GuestsCollector"]

_GUEST: Final = ("guest", "socket")
_KNOWN_STATES: Final = tuple(
    status.value for status in MigrationStatus if status is not MigrationStatus.NONE
)


class GuestsCollector(Collector):
    """Gives the latest sample of each guest to whoever asks; may be asked from any thread."""

    def __init__(self) -> None:
        self._snapshot: tuple[GuestSnapshot, ...] = ()

    def update(self, snapshots: Sequence[GuestSnapshot]) -> None:
        """Take a newer sample."""
        self._snapshot = tuple(snapshots)

    def collect(self) -> Iterable[Metric]:
        """As prometheus_client wants it."""
        families = _Families()
        for snapshot in self._snapshot:
            families.add(snapshot)
        return families.all()


class _Families:
    """Each metric, with what is known of all guests."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def all(self) -> Iterator[Metric]:
        yield from self._families.values()

    def add(self, snapshot: GuestSnapshot) -> None:
        state = snapshot.state
        up = snapshot.presence is Presence.SEEN and state is not None
        guest = _Labels(snapshot)
        self._gauge("qemu_ring_guest_up", "Whether the guest's QEMU answers.", guest, up)
        if not up or state is None:
            return
        self._about(state, guest)
        if state.flush is not None:
            self._flush(state.flush, guest)
        if state.rings is not None:
            self._rings(state.rings, guest)
        self._slots(state.slots, guest)
        self._dirty_rate(state, guest)
        if state.migration is not None:
            self._migration(state.migration, guest)

    def _about(self, state: GuestState, guest: _Labels) -> None:
        what = {
            "version": ".".join(map(str, state.version)),
            "package": _text(state.package),
            "patched": str(state.patched).lower(),
            "tracking": _text(str(state.tracking)),
        }
        name, words = "qemu_ring_guest_qemu", "The guest's QEMU, and how dirty pages are tracked."
        family = self._families.setdefault(name, InfoMetricFamily(name, words, labels=_GUEST))
        assert isinstance(family, InfoMetricFamily)
        family.add_metric(guest.values, what)
        self._gauge("qemu_ring_guest_running", "Whether the vCPUs run.", guest, state.running)

    def _flush(self, flush: FlushSnapshot, guest: _Labels) -> None:
        where = guest.beside(policy=flush.effective.value)
        count, gauge, start = self._counter, self._gauge, "qemu_ring_memslot_flush_"
        count(f"{start}removals", "Memslots removed that log dirty pages.", where, flush.removals)
        count(
            f"{start}late_pages",
            "Pages harvested after the point at which best-effort would have lost them.",
            where,
            flush.pages_late,
        )
        count(
            f"{start}trapped_writes",
            "Writes trapped while a memslot was read-only.",
            where,
            flush.writes_trapped,
        )
        count(f"{start}holds", "Times that all vCPUs were held.", where, flush.holds)
        count(f"{start}hold_seconds", "Time that all vCPUs were held.", where, flush.hold_seconds)
        gauge(
            f"{start}longest_hold_seconds",
            "The longest time that all vCPUs were held.",
            where,
            flush.hold_seconds_max,
        )
        count(
            "qemu_ring_dirty_ring_dropped_entries",
            "Ring entries whose memslot was gone: lost pages.",
            guest,
            flush.entries_dropped,
        )

    def _rings(self, rings: RingsSnapshot, guest: _Labels) -> None:
        start = "qemu_ring_dirty_ring_"
        self._gauge(f"{start}size_entries", "Entries of each vCPU's ring.", guest, rings.size)
        for ring in rings.vcpus:
            where = guest.beside(vcpu=str(ring.vcpu))
            self._gauge(f"{start}fill_entries", "Entries that wait to be reaped.", where, ring.fill)
            self._counter(f"{start}reaped_entries", "Entries reaped.", where, ring.reaped)
            self._counter(
                f"{start}full_exits",
                "Exits of the vCPU because its ring was full.",
                where,
                ring.full,
            )

    def _slots(self, slots: Sequence[SlotsSnapshot], guest: _Labels) -> None:
        for one in slots:
            where = guest.beside(address_space=str(one.address_space))
            self._gauge("qemu_ring_memslots", "KVM's memslots.", where, one.count)
            self._gauge("qemu_ring_memslots_bytes", "Memory in KVM's memslots.", where, one.size)
            self._gauge(
                "qemu_ring_memslots_logging", "Memslots that log dirty pages.", where, one.logging
            )
            self._gauge(
                "qemu_ring_memslots_logging_bytes",
                "Memory in memslots that log dirty pages.",
                where,
                one.logging_size,
            )

    def _dirty_rate(self, state: GuestState, guest: _Labels) -> None:
        rate = state.dirty_rate
        if rate is None:
            return
        where, start = guest.beside(mode=_text(rate.mode)), "qemu_ring_dirty_rate_"
        self._gauge(
            f"{start}bytes_per_second",
            "Memory dirtied, as it was measured last.",
            where,
            rate.bytes_per_second,
        )
        self._gauge(f"{start}age_seconds", "Time since that measurement.", where, rate.age_seconds)

    def _migration(self, migration: MigrationSnapshot, guest: _Labels) -> None:
        status, start = migration.status.value, "qemu_ring_migration_"
        for state in dict.fromkeys((*_KNOWN_STATES, status)):
            self._gauge(
                f"{start}status",
                "Whether the last migration is in this state; 1 for one of them.",
                guest.beside(status=_text(state)),
                state == status,
            )
        throttle = migration.throttle
        for name, words, value in (
            ("iterations", "Passes over memory begun.", migration.iteration),
            ("transferred_bytes", "Sent so far.", migration.transferred),
            ("remaining_bytes", "Known to be left to send.", migration.remaining),
            ("memory_bytes", "Memory of the guest.", migration.total),
            (
                "absorbed_pages",
                "Dirty again when they were sent, and not sent once more for that.",
                migration.pages_absorbed,
            ),
            (
                "bandwidth_bytes_per_second",
                "Sent, as QEMU measured it last.",
                migration.bandwidth,
            ),
            (
                "dirty_rate_bytes_per_second",
                "Dirtied by the guest, as of the last pass's beginning.",
                migration.dirty_rate,
            ),
            (
                "expected_downtime_seconds",
                "QEMU's estimate of the downtime.",
                migration.expected_downtime,
            ),
            (
                "throttle_ratio",
                "Share of the vCPUs' time that auto-converge takes.",
                None if throttle is None else throttle / 100,
            ),
            (
                "elapsed_seconds",
                "Since the migration's beginning; how long it took, if it is over.",
                migration.seconds,
            ),
            (
                "last_downtime_seconds",
                "How long the guest stood still, of a migration that has completed.",
                migration.downtime,
            ),
        ):
            self._gauge(start + name, words, guest, value)

    def _gauge(self, name: str, words: str, labels: _Labels, value: float | None) -> None:
        if value is None:
            return
        family = self._families.setdefault(
            name, GaugeMetricFamily(name, words, labels=labels.names)
        )
        assert isinstance(family, GaugeMetricFamily)
        family.add_metric(labels.values, float(value))

    def _counter(self, name: str, words: str, labels: _Labels, value: float) -> None:
        family = self._families.setdefault(
            name, CounterMetricFamily(name, f"{words} Since QEMU's start.", labels=labels.names)
        )
        assert isinstance(family, CounterMetricFamily)
        family.add_metric(labels.values, float(value))


class _Labels:
    """Those of a guest, and more."""

    def __init__(self, snapshot: GuestSnapshot, **more: str) -> None:
        self._snapshot = snapshot
        name = snapshot.state.name if snapshot.state is not None else ""
        self.names = (*_GUEST, *more)
        self.values = (_text(name or snapshot.socket), _text(snapshot.socket), *more.values())

    def beside(self, **more: str) -> _Labels:
        """The same, and more."""
        return _Labels(self._snapshot, **more)


def _text(value: str) -> str:
    """What comes from elsewhere may be no UTF-8, as a path may."""
    return value.encode("utf-8", "backslashreplace").decode()
