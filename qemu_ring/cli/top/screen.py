"""What `qemu-ring top` shows, as lines of text that fit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from rich.text import Text

from qemu_ring.dirty import STALL_ADVICE, stall_message
from qemu_ring.observe.snapshot import (
    FlushSnapshot,
    GuestSnapshot,
    GuestState,
    MigrationSnapshot,
    Presence,
    RingSnapshot,
    RingsSnapshot,
    SlotsSnapshot,
)
from qemu_ring.qmp import MigrationStatus

__all__ = ["cropped", "guest_lines", "guests_lines", "head_line", "plain_ascii"]

_LABEL: Final = 13
_BAR: Final = 10
_NBSP: Final = "\N{NO-BREAK SPACE}"
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_ASCII: Final = str.maketrans({"█": "#", "░": ".", "…": "~", "µ": "u", "─": "-"})
_GOOD, _NOTICE, _BAD, _DIM = "green", "yellow", "bold red", "dim"


def head_line(guests: int, clock: str, interval: float, width: int) -> Text:
    """The first line of the live screen."""
    many = "1 guest" if guests == 1 else f"{guests} guests"
    return _ends(
        Text.assemble(("qemu-ring top", "bold"), f"  {clock}  {many}, every {interval:g} s"),
        Text("q: end", _DIM),
        width,
    )


def guests_lines(
    snapshots: Sequence[GuestSnapshot], width: int, height: int | None = None
) -> list[Text]:
    """All guests; rings are folded into a line for each guest if `height` is too little else."""
    for folded in (False, True):
        lines: list[Text] = []
        for snapshot in snapshots:
            lines += [Text("─" * width, _DIM), *guest_lines(snapshot, width, fold_rings=folded)]
        if height is None or len(lines) <= height:
            break
    return lines


def guest_lines(snapshot: GuestSnapshot, width: int, *, fold_rings: bool = False) -> list[Text]:
    """One guest."""
    lines = [_title(snapshot, width)]
    state = snapshot.state
    if snapshot.problem:
        lines += _fact("", [_printable(snapshot.problem)], width, style=_NOTICE)
    if state is None or snapshot.presence is Presence.GONE:
        return lines
    lines += _fact("tracking", [str(state.tracking)], width)
    if state.stalled:
        lines += _fact("", [stall_message(state.stalled), STALL_ADVICE], width, style=_BAD)
    if state.flush is not None:
        lines += _flush(state.flush, width)
    elif not state.patched:
        note = "not patched: rings and slots are hidden; qemu-ring build"
        lines += _fact("", [note], width, style=_DIM)
    if state.slots:
        lines += _fact("memslots", _slots(state.slots), width)
    lines += _fact("dirty rate", _dirty_rate(state), width)
    if state.migration is not None:
        lines += _migration(state.migration, width)
    if state.rings is not None:
        lines += _rings(state.rings, snapshot.peak_reaped_per_second, width, fold=fold_rings)
    return lines


def cropped(lines: Sequence[Text], height: int) -> list[Text]:
    """As many lines as fit; the last says if there are more."""
    if len(lines) <= height:
        return list(lines)
    shown = list(lines[: max(height - 1, 0)])
    return [*shown, Text(f"… {len(lines) - len(shown)} more lines", _NOTICE)]


def plain_ascii(lines: Iterable[Text]) -> list[Text]:
    """For a terminal that has nothing but ASCII."""
    return [
        Text(line.plain.translate(_ASCII).encode("ascii", "replace").decode()) for line in lines
    ]


def _title(snapshot: GuestSnapshot, width: int) -> Text:
    state = snapshot.state
    since = _span(snapshot.seconds_since)
    if snapshot.presence is Presence.GONE:
        right = Text(f"gone for {since}" if state else "not there", _BAD)
    elif snapshot.presence is Presence.SILENT:
        right = Text(f"no answer for {since}", _NOTICE)
    else:
        assert state is not None
        right = Text(_printable(state.run_state), _GOOD if state.running else _NOTICE)
    left = Text(_printable(snapshot.socket), "bold")
    if state is not None:
        if state.name:
            left = Text.assemble(
                (_printable(state.name), "bold"), f"  {_printable(snapshot.socket)}"
            )
        version = ".".join(map(str, state.version))
        right = Text.assemble(
            f"QEMU {version}{', patched' if state.patched else ''}  ", right, style=""
        )
    return _ends(left, right, width)


def _flush(flush: FlushSnapshot, width: int) -> list[Text]:
    policy = flush.effective.value
    if flush.policy is not flush.effective:
        policy += f" (by {flush.policy.value})"
    items = [
        policy,
        f"{_short(flush.removals_per_second).strip()} removals/s ({flush.removals:,} in all)",
        f"{flush.pages_late:,} late pages",
    ]
    if flush.writes_trapped:
        items.append(f"{flush.writes_trapped:,} writes trapped")
    lines = _fact("flush", items, width)
    if flush.holds:
        share = "-" if flush.held_share is None else f"{flush.held_share:.1%}"
        mean = _span(flush.hold_seconds / flush.holds)
        held = [
            f"vCPUs held {share} of time ({_span(flush.hold_seconds)} in all)",
            f"mean {mean}",
            f"longest {_span(flush.hold_seconds_max)}",
        ]
        lines += _fact("", held, width)
    if flush.entries_dropped:
        lost = f"{flush.entries_dropped:,} ring entries had no memslot left: lost pages"
        lines += _fact("", [lost], width, style=_BAD)
    return lines


def _slots(slots: Sequence[SlotsSnapshot]) -> list[str]:
    items = []
    for one in slots:
        where = "" if one.address_space == 0 else f"address space {one.address_space}: "
        items.append(f"{where}{one.count} with {_size(one.size)}")
        if one.logging == one.count:
            items.append("all log dirty pages")
        elif one.logging:
            items.append(f"{one.logging} with {_size(one.logging_size)} log dirty pages")
        else:
            items.append("none logs dirty pages")
    return items


def _dirty_rate(state: GuestState) -> list[str]:
    rate = state.dirty_rate
    if state.rate_refused:
        return [f"refused: {_printable(state.rate_refused)}"]
    if rate is None:
        return ["not measured (--dirty-rate measures it)"]
    if rate.bytes_per_second is None:
        return [f"being measured by {rate.mode}" if rate.measuring else "found no memory to sample"]
    items = [f"{_rate(rate.bytes_per_second)} by {rate.mode} for {_span(rate.seconds)}"]
    if rate.age_seconds is not None:
        items.append(f"{_span(float(round(rate.age_seconds)))} ago")
    return items


def _migration(migration: MigrationSnapshot, width: int) -> list[Text]:
    status = migration.status
    items = [_printable(status)]
    if status.is_final:
        if migration.seconds is not None:
            items.append(f"after {_span(migration.seconds)}")
        if migration.downtime is not None:
            items.append(f"downtime {_span(migration.downtime)}")
        if migration.iteration is not None:
            items.append(f"{migration.iteration} iterations")
        if migration.transferred is not None:
            items.append(f"{_size(migration.transferred)} sent")
        if migration.error:
            items.append(_printable(migration.error))
        good = status is MigrationStatus.COMPLETED
        return _fact("migration", items, width, style=_GOOD if good else _BAD)
    if migration.seconds is not None:
        items.append(f"for {_span(migration.seconds)}")
    if migration.iteration is not None:
        items.append(f"iteration {migration.iteration}")
    if migration.throttle:
        items.append(f"throttled by {migration.throttle}%")
    lines = _fact("migration", items, width, style=_NOTICE)
    if migration.remaining is not None and migration.total:
        bar = _bar(1 - migration.remaining / migration.total, 2 * _BAR)
        left = f"{_size(migration.remaining)} of {_size(migration.total)} remain"
        lines += _fact("", [f"{bar} {left}"], width)
    pace = []
    if migration.bandwidth is not None:
        pace.append(f"sends {_rate(migration.bandwidth)}")
    if migration.dirty_rate is not None:
        pace.append(f"dirtied {_rate(migration.dirty_rate)}")
    if migration.expected_downtime is not None:
        pace.append(f"expected downtime {_span(migration.expected_downtime)}")
    if migration.pages_absorbed:  # 0 by bitmap: there it is KVM that absorbs
        pace.append(f"absorbed {migration.pages_absorbed:,} pages")
    return lines + (_fact("", pace, width) if pace else [])


def _rings(rings: RingsSnapshot, peak: float, width: int, *, fold: bool) -> list[Text]:
    if not fold:
        return [_ring(ring, rings.size, peak, width) for ring in rings.vcpus]
    fullest = max(rings.vcpus, key=lambda ring: ring.fill)
    rates = [ring.reaped_per_second for ring in rings.vcpus if ring.reaped_per_second is not None]
    items = [
        f"{len(rings.vcpus)} vCPUs",
        f"fullest {fullest.fill / rings.size:.0%} (vCPU {fullest.vcpu})",
        f"reaped {_short(sum(rates) if rates else None).strip()}/s",
        f"{sum(ring.full for ring in rings.vcpus):,} full exits",
    ]
    overruns = sum(ring.overruns for ring in rings.vcpus)
    if overruns:
        items.append(f"{overruns:,} overruns")
    return _fact("rings", items, width)


def _ring(ring: RingSnapshot, size: int, peak: float, width: int) -> Text:
    fill = ring.fill / size
    colour = _GOOD if fill < 0.5 else _NOTICE if fill < 0.9 else _BAD
    rate = ring.reaped_per_second
    share = 0.0 if rate is None or not peak else rate / peak
    line = Text.assemble(
        f"  {f'vCPU {ring.vcpu}':<{_LABEL - 2}}fill ",
        (_bar(fill), colour),
        f" {fill:>4.0%}  reaped ",
        (_bar(share), "cyan"),
        f" {_short(rate)}/s  full {_short(ring.full)}",
    )
    if ring.overruns:
        line.append(f"  overrun {_short(ring.overruns).strip()}", _NOTICE)
    if ring.full_per_second:
        line.append(f" (+{ring.full_per_second:,.0f}/s)", _NOTICE)
    line.truncate(width, overflow="ellipsis")
    return line


def _fact(label: str, items: Iterable[str], width: int, *, style: str = "") -> list[Text]:
    """A label and what there is to say; short items are not broken."""
    room = max(width - _LABEL, _LABEL)
    kept = [item.replace(" ", _NBSP) if len(item) <= room // 2 else item for item in items]
    found: list[Text] = []
    for line in textwrap.wrap(", ".join(kept), room, break_on_hyphens=False):
        head = f"  {'' if found else label:<{_LABEL - 2}}"
        found.append(Text.assemble((head, _DIM), (line.replace(_NBSP, " "), style)))
        found[-1].truncate(width, overflow="ellipsis")
    return found


def _ends(left: Text, right: Text, width: int) -> Text:
    """Two texts at the two ends of a line; the left one is shortened where that is needed."""
    left = left.copy()
    left.truncate(max(width - right.cell_len - 2, 0), overflow="ellipsis")
    gap = max(width - left.cell_len - right.cell_len, 0)
    line = Text.assemble(left, " " * gap, right)
    line.truncate(width, overflow="ellipsis")
    return line


def _bar(share: float, cells: int = _BAR) -> str:
    full = round(min(max(share, 0.0), 1.0) * cells)
    if share > 0:
        full = max(full, 1)  # a little is not nothing
    return "█" * full + "░" * (cells - full)


def _printable(text: str) -> str:
    """Without what would move the cursor: a guest's name comes from elsewhere."""
    return "".join(char if char.isprintable() else " " for char in text)


def _three(value: float) -> str:
    """Three digits, or all that are before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def _size(value: float) -> str:
    unit = 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{_three(value)} {_UNITS[unit]}"


def _rate(value: float) -> str:
    return f"{_size(value)}/s"


def _short(value: float | None) -> str:
    """A number in five characters."""
    if value is None:
        return f"{'-':>5}"
    for unit in ("", "k", "M", "G"):
        if value < 999.5 or unit == "G":
            break
        value /= 1000
    digits = 0 if not unit or value >= 99.5 else 1
    return f"{value:.{digits}f}{unit}".rjust(5)


def _span(seconds: float) -> str:
    """A time in one unit or two."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    if seconds >= 120:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    if seconds >= 1 or not seconds:
        return f"{_three(seconds)} s"
    return f"{_three(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
