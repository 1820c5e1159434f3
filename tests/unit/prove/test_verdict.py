"""The words a result is put into, and its JSON document."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import ExitStatus
from qemu_ring.machine import Host, KvmCapabilities, QemuBinary
from qemu_ring.memslot import FlushInfo, FlushPolicy, FlushStatistics
from qemu_ring.prove import Control, ProveOptions, ProveResult, ProveVerdict, ReAdd, Round, Writer
from qemu_ring.verify import StalePage

MIB = 1 << 20


def made(
    stale: int = 0,
    *,
    re_add: ReAdd | None = None,
    control: Control | None = None,
    tracking: str = "ring:4096",
    flush: FlushInfo | None = None,
    writer: Writer = Writer.VCPU,
) -> ProveResult:
    """A result of one round with so many stale pages."""
    one = Round(0, "removals", "pci", 100, 5000, 6000, stale, 9000, 0.5, 0.6)
    probe = Round(1, "re-add", None, 1, 0, 0, 0, 9000, 0.5, 1.1)
    return ProveResult(
        options=ProveOptions(tracking=Tracking.parse(tracking), control=control, writer=writer),
        host=Host("6.1.0", "A CPU", 2, 8 << 30),
        kvm=KvmCapabilities(12, 65536 * 16, False, True, 3, False, 509, 64, 2_000_000),
        qemu=QemuBinary(
            Path("/q"), "7.2.22", "ab" * 32, True, "dirty-ring-size", False, True, frozenset()
        ),
        rounds=(one, probe),
        stale=tuple(StalePage("slot", 7 * i, "11" * 32, "22" * 32) for i in range(stale)),
        re_add=re_add,
        seconds=1.2,
        first_write_seconds=0.05,
        first_stale_seconds=0.61 if stale else None,
        void_rounds=0,
        flush=flush,
    )


def words(result: ProveResult) -> str:
    verdict = ProveVerdict.of(result)
    return "\n".join([verdict.headline, *verdict.meaning, *verdict.pages])


def test_stale() -> None:
    result = made(20)
    assert result.exit_status is ExitStatus.BAD
    verdict = ProveVerdict.of(result)
    assert "LOSES dirty bits" in verdict.headline
    assert "20 stale pages after 100 memory slot removals in 2 migrations" in verdict.headline
    assert "One page was lost in 5.0 removals" in words(result)
    assert "found 0.61 s after the start" in words(result)
    assert verdict.pages[1].startswith("slot page 7: source 111111111111, destination 2222")
    assert verdict.pages[-1] == "and 12 more; --json lists them"


def test_rates_are_told_as_one_would_say_them() -> None:
    assert "One page was lost in 50 removals" in words(made(2))
    assert "Each removal lost 1.5 pages" in words(made(150))


def test_one_stale_page_is_not_pages() -> None:
    assert ": 1 stale page after" in words(made(1))
    assert "and " not in ProveVerdict.of(made(1)).pages[-1]


def test_clean_does_not_claim_too_much() -> None:
    result = made()
    assert result.exit_status is ExitStatus.GOOD
    assert "lost no dirty bit here" in words(result)
    assert "not that nothing can be" in words(result)
    assert ProveVerdict.of(result).pages == ()


def test_re_added_slots_that_start_dirty_are_named_as_the_reason() -> None:
    dear = made(re_add=ReAdd(32 * MIB, 32 * MIB), tracking="bitmap")
    assert "32.0 MiB of the slot's 32 MiB" in words(dear)
    assert "hides the loss" in words(dear)
    cheap = made(3, re_add=ReAdd(32 * MIB, 8192))
    assert "0.0 MiB of the slot's 32 MiB" in words(cheap)
    assert "hides the loss" not in words(cheap)


def test_controls_say_so() -> None:
    assert "control: the guest wrote nothing" in words(made(control=Control.IDLE))
    assert "no slot was removed" in words(made(control=Control.NO_REMOVALS))
    assert "for another reason" in words(made(2, control=Control.IDLE))


def test_a_device_is_called_one() -> None:
    device = Writer.VHOST_USER
    assert "written by a vhost-user back end" in ProveVerdict.of(made(writer=device)).headline
    said = words(made(20, writer=device))
    assert "a vhost-user back end wrote 5,000 pages" in said
    assert "QEMU does not read the log of memory that has gone" in said
    assert "the guest writes" not in said
    assert "A vhost-user back end wrote" in words(made(writer=device))
    control = made(control=Control.IDLE, writer=device)
    assert "control: a vhost-user back end wrote nothing" in words(control)


def test_document_has_what_is_promised() -> None:
    document = json.loads(json.dumps(made(2, re_add=ReAdd(1, 0)).as_dict()))
    assert document["schema"] == {"name": "qemu-ring.prove", "version": 1}
    assert document["host"]["kernel"] == "6.1.0"
    assert document["host"]["kvm"]["readonly_mem"] is True
    assert document["qemu"]["path"] == "/q"
    assert document["qemu"]["patched"] is False
    assert document["qemu"]["sha256"] == "ab" * 32
    assert document["policy"] == "best-effort"
    assert document["tracking"] == "ring:4096"
    assert document["removals"] == 100  # the one of the re-add measurement is not counted
    assert document["pages_written"] == 5000
    assert document["stale_pages"] == 2
    assert document["stale"][1] == {
        "block": "slot",
        "page": 7,
        "source_digest": "11" * 32,
        "destination_digest": "22" * 32,
    }
    assert document["seconds"] == 1.2
    assert document["first_stale_seconds"] == 0.61


def counted(
    asked: FlushPolicy,
    effective: FlushPolicy,
    *,
    late: int = 0,
    dropped: int = 0,
    hold_ns: tuple[int, ...] = (),
) -> FlushInfo:
    """What a patched QEMU says of itself, after holds that took so long."""
    statistics = FlushStatistics(
        policy=effective,
        removals=100,
        pages_harvested=5000,
        pages_late=late,
        writes_trapped=0,
        holds=len(hold_ns),
        hold_ns=sum(hold_ns),
        hold_ns_max=max(hold_ns, default=0),
        hold_ns_log2=(),
    )
    return FlushInfo(
        policy=asked, effective=effective, entries_dropped=dropped, stats=(statistics,)
    )


def test_what_a_patched_qemu_counted() -> None:
    flush = counted(
        FlushPolicy.AUTO, FlushPolicy.QUIESCE, late=77, dropped=1, hold_ns=(100_000, 200_000)
    )
    result = made(flush=flush)
    assert "(ring:4096, policy quiesce)" in words(result)
    assert "77 late pages" in words(result)
    assert "dropped 1 dirty ring entry whose slot was gone." in words(result)
    assert "held the vCPUs 2 times, for 150 us on average and 200 us at most" in words(result)
    document = json.loads(json.dumps(result.as_dict()))
    assert document["policy"] == "quiesce"
    assert document["flush"]["stats"][0]["pages_late"] == 77


def test_shapes_are_told_if_there_was_more_than_one() -> None:
    pci = Round(0, "removals", "pci", 100, 5000, 6000, 0, 9000, 0.5, 0.6)
    move = Round(1, "removals", "move", 40, 300, 6000, 2, 9000, 0.5, 1.2)
    result = replace(made(2), rounds=(move, pci, move))
    assert "slots went and came back: pci 100, move 80 (with 4 stale pages)." in words(result)
    assert result.as_dict()["shapes"] == [
        {"shape": "pci", "rounds": 1, "removals": 100, "pages_written": 5000, "stale_pages": 0},
        {"shape": "move", "rounds": 2, "removals": 80, "pages_written": 600, "stale_pages": 4},
    ]
    assert "came back:" not in words(made(2))


def test_best_effort_has_no_late_pages_to_boast_of() -> None:
    flush = counted(FlushPolicy.BEST_EFFORT, FlushPolicy.BEST_EFFORT, dropped=19)
    said = words(made(14, flush=flush))
    assert "dropped 19 dirty ring entries whose slot was gone" in said
    assert "late page" not in said
    assert "held the vCPUs" not in said


def test_clean_says_how_much_it_says() -> None:
    result = made(0)
    assert result.removals == 100
    assert result.as_dict()["loss_bound"] == 0.03
    assert "less than one removal in 33 lost a page, at 95 %" in words(result)


@pytest.mark.parametrize("result", [made(1), made(0, control=Control.NO_REMOVALS)])
def test_no_bound_where_it_says_nothing(result: ProveResult) -> None:
    assert result.loss_bound is None
    assert "at 95 %" not in words(result)
