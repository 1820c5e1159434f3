"""A proof's result in plain words."""

from __future__ import annotations

from dataclasses import dataclass

from qemu_ring.memslot import FlushPolicy, Shape
from qemu_ring.prove.options import Control, Writer
from qemu_ring.prove.result import ProveResult

__all__ = ["ProveVerdict"]

_SHOWN_PAGES = 8


@dataclass(frozen=True, slots=True)
class ProveVerdict:
    """What to tell the user.

    Args:
        headline: the answer, one line.
        meaning: what the numbers mean, a paragraph each.
        pages: which pages were stale, a line each; empty if none was.
    """

    headline: str
    meaning: tuple[str, ...]
    pages: tuple[str, ...]

    @classmethod
    def of(cls, result: ProveResult) -> ProveVerdict:
        """Put a result into words."""
        if result.stale_pages:
            return cls(
                _stale_headline(result), tuple(_stale_meaning(result)), tuple(_pages(result))
            )
        return cls(_clean_headline(result), tuple(_clean_meaning(result)), ())


def _how(result: ProveResult) -> str:
    tracking = str(result.options.tracking)
    if result.options.writer is Writer.VHOST_USER:
        tracking += ", written by a vhost-user back end"
    return tracking if result.flush is None else f"{tracking}, policy {result.policy}"


def _flush(result: ProveResult) -> list[str]:
    """What a patched QEMU counted itself."""
    if result.flush is None:
        return []
    stats = result.flush.of(result.flush.effective)
    said = f"QEMU counted {_many(stats.removals, 'removal')} by policy {result.policy}"
    if result.flush.effective is not FlushPolicy.BEST_EFFORT:
        said += (
            f", and {_many(stats.pages_late, 'late page')}: dirtied after the point at which "
            "best-effort removes a slot, and harvested all the same"
        )
    dropped = _many(result.flush.entries_dropped, "dirty ring entry", "dirty ring entries")
    said += f". It dropped {dropped} whose slot was gone."
    if stats.holds:
        mean, longest = stats.hold_ns / stats.holds / 1000, stats.hold_ns_max / 1000
        said += (
            f" It held the vCPUs {_many(stats.holds, 'time')}, for {mean:,.0f} us on average and "
            f"{longest:,.0f} us at most."
        )
    return [said]


def _shapes(result: ProveResult) -> list[str]:
    """Which ways of removal there were, if not only the one that any QEMU has."""
    if all(one.shape == Shape.PCI.value for one in result.shapes):
        return []
    said = ", ".join(
        f"{one.shape} {one.removals:,}"
        + (f" (with {_many(one.stale_pages, 'stale page')})" if one.stale_pages else "")
        for one in result.shapes
    )
    return [f"Removals by the way in which slots went and came back: {said}."]


def _counts(result: ProveResult) -> str:
    removals = f"{_many(result.removals, 'memory slot removal')}"
    return f"{removals} in {_many(len(result.rounds), 'migration')}"


def _stale_headline(result: ProveResult) -> str:
    stale = _many(result.stale_pages, "stale page")
    return (
        f"QEMU {result.qemu.version} LOSES dirty bits on this host ({_how(result)}): "
        f"{stale} after {_counts(result)}."
    )


def _stale_meaning(result: ProveResult) -> list[str]:
    if result.options.control is not None:
        return [
            (
                "This was a control run, which must find nothing. That it found stale pages means "
                "that memory is lost for another reason than the removal of slots under a writer."
            )
        ]
    meaning = [
        (
            f"While it was being migrated, {_who(result)} wrote {result.pages_written:,} pages of "
            "a memory slot that was removed and added again. At the destination "
            f"{result.stale_pages:,} of them have an older content. {_why(result)}, and no error "
            "tells of it."
        ),
        (
            f"{_ratio(result)} here. The rate follows how fast {_who(result)} dirties clean pages; "
            "a lost page may hold anything."
        ),
    ]
    if result.first_stale_seconds is not None:
        meaning.append(
            f"The first stale page was found {result.first_stale_seconds:.2f} s after the start."
        )
    return meaning + _shapes(result) + _flush(result) + _re_add(result)


def _who(result: ProveResult) -> str:
    return "the guest" if result.options.writer is Writer.VCPU else "a vhost-user back end"


def _why(result: ProveResult) -> str:
    if result.options.writer is Writer.VCPU:
        return (
            "QEMU takes a slot's dirty bits and then removes the slot; what the guest writes in "
            "between is never sent"
        )
    return (
        "The back end logs what it writes; QEMU does not read the log of memory that has gone, "
        "and throws it away when the log gets smaller"
    )


def _clean_headline(result: ProveResult) -> str:
    return (
        f"QEMU {result.qemu.version} lost no dirty bit here ({_how(result)}): "
        f"0 stale pages after {_counts(result)}."
    )


def _clean_meaning(result: ProveResult) -> list[str]:
    if result.options.control is Control.IDLE:
        return [
            f"This was a control: {_who(result)} wrote nothing into the slots that were removed."
        ]
    if result.options.control is Control.NO_REMOVALS:
        return [
            (
                f"This was a control: {_who(result)} wrote {result.pages_written:,} pages, and no "
                "slot was removed."
            )
        ]
    return [
        (
            f"{_who(result).capitalize()} wrote {result.pages_written:,} pages of a memory slot "
            "that was removed and added again, and every byte of the guest's memory arrived. It "
            "shows that nothing was lost in this run, not that nothing can be"
            f"{_bound(result)}; more --seconds make it say more."
        ),
        *_shapes(result),
        *_flush(result),
        *_re_add(result),
    ]


def _bound(result: ProveResult) -> str:
    if result.loss_bound is None:
        return ""
    return f": less than one removal in {1 / result.loss_bound:,.0f} lost a page, at 95 %"


def _re_add(result: ProveResult) -> list[str]:
    if result.re_add is None:
        return []
    resent, size = result.re_add.resent_bytes, result.re_add.slot_bytes
    share = f"{resent / 1048576:.1f} MiB of the slot's {size // 1048576} MiB"
    if resent < size // 2:
        return [f"Sent again because an idle slot was removed and added once: {share}."]
    return [
        (
            f"Sent again because an idle slot was removed and added once: {share}. A slot that is "
            "added starts with all pages dirty, which hides the loss and costs that much each time."
        )
    ]


def _pages(result: ProveResult) -> list[str]:
    shown = result.stale[:_SHOWN_PAGES]
    lines = [str(page) for page in shown]
    if result.stale_pages > len(shown):
        lines.append(f"and {result.stale_pages - len(shown):,} more; --json lists them")
    return lines


def _ratio(result: ProveResult) -> str:
    if result.stale_pages >= result.removals:
        return f"Each removal lost {result.stale_pages / max(result.removals, 1):.1f} pages"
    ratio = result.removals / result.stale_pages
    return (
        f"One page was lost in {ratio:.1f} removals"
        if ratio < 10
        else (f"One page was lost in {ratio:,.0f} removals")
    )


def _many(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"
