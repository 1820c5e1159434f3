"""What `qemu-ring top` shows of given samples, and how it takes what QEMU answers."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.text import Text

from qemu_ring.cli.top.command import top
from qemu_ring.cli.top.screen import cropped, guest_lines, guests_lines, head_line, plain_ascii
from qemu_ring.dirty import RunningTracking, TrackingMode
from qemu_ring.errors import UsageError
from qemu_ring.memslot import DirtyRings, FlushInfo, FlushPolicy
from qemu_ring.observe.poll import GuestPoller
from qemu_ring.observe.snapshot import (
    DirtyRateSnapshot,
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
from tests.unit.dirty.conftest import Refusal, schema
from tests.unit.qmp.conftest import FakeQemu, Peer, nothing_left, qemu

__all__ = ["nothing_left", "qemu"]

MIB = 1 << 20

FLUSH = FlushSnapshot(
    policy=FlushPolicy.AUTO,
    effective=FlushPolicy.QUIESCE,
    removals=34_567,
    pages_late=12,
    entries_dropped=0,
    writes_trapped=0,
    holds=34_567,
    hold_seconds=1.5,
    hold_seconds_max=0.00052,
    removals_per_second=120.0,
    pages_late_per_second=0.0,
    held_share=0.0123,
)
RINGS = RingsSnapshot(
    4096,
    with_bitmap=False,
    vcpus=(
        RingSnapshot(0, 1024, 9_000_000, 0, 100_000.0, 0.0),
        RingSnapshot(1, 4000, 123_456, 1234, 50_000.0, 7.0),
    ),
)
MIGRATION = MigrationSnapshot(
    status=MigrationStatus.ACTIVE,
    iteration=5,
    transferred=100 * MIB,
    remaining=12 * MIB,
    total=48 * MIB,
    bandwidth=1.25e6,
    dirty_rate=16 * MIB,
    expected_downtime=12.0,
    throttle=20,
    seconds=61.5,
    downtime=None,
    error=None,
)
SEEN = GuestState(
    name="web",
    version=(10, 0, 13),
    package="Debian 1:10.0.13",
    patched=True,
    run_state="running",
    running=True,
    tracking=RunningTracking("kvm", TrackingMode.RING, 4096),
    flush=FLUSH,
    rings=RINGS,
    slots=(SlotsSnapshot(0, 13, 80 * MIB, 5, 64 * MIB),),
    dirty_rate=DirtyRateSnapshot(12 * MIB, "page-sampling", 1.0, 3.2, measuring=False),
    rate_refused="",
    migration=MIGRATION,
)
GUEST = GuestSnapshot("/run/web.qmp", Presence.SEEN, SEEN, 0.1, "", 100_000.0)
UNPATCHED = replace(
    SEEN,
    name="",
    version=(7, 2, 22),
    patched=False,
    flush=None,
    rings=None,
    slots=(),
    dirty_rate=None,
    migration=None,
)


def shown(guest: GuestSnapshot, width: int = 80, *, fold_rings: bool = False) -> list[str]:
    return [line.plain for line in guest_lines(guest, width, fold_rings=fold_rings)]


def with_seen(**changes: Any) -> GuestSnapshot:
    return replace(GUEST, state=replace(SEEN, **changes))


def test_everything_at_80_columns() -> None:
    assert shown(GUEST) == [
        "web  /run/web.qmp                                 QEMU 10.0.13, patched  running",
        "  tracking   ring:4096",
        "  flush      quiesce (by auto), 120 removals/s (34,567 in all), 12 late pages",
        "             vCPUs held 1.2% of time (1.5 s in all), mean 43 µs, longest 520 µs",
        "  memslots   13 with 80 MiB, 5 with 64 MiB log dirty pages",
        "  dirty rate 12 MiB/s by page-sampling for 1 s, 3 s ago",
        "  migration  active, for 61.5 s, iteration 5, throttled by 20%",
        "             ███████████████░░░░░ 12 MiB of 48 MiB remain",
        "             sends 1.19 MiB/s, dirtied 16 MiB/s, expected downtime 12 s",
        "  vCPU 0     fill ██░░░░░░░░  25%  reaped ██████████  100k/s  full     0",
        "  vCPU 1     fill ██████████  98%  reaped █████░░░░░ 50.0k/s  full  1.2k (+7/s)",
    ]


def test_unpatched_says_once_what_is_hidden() -> None:
    assert shown(replace(GUEST, state=UNPATCHED)) == [
        "/run/web.qmp                                                QEMU 7.2.22  running",
        "  tracking   ring:4096",
        "             not patched: rings and slots are hidden; qemu-ring build",
        "  dirty rate not measured (--dirty-rate measures it)",
    ]


def test_patched_by_bitmap_or_without_kvm_hides_nothing() -> None:
    tcg = RunningTracking("tcg", TrackingMode.SOFTWARE)
    text = "\n".join(shown(with_seen(tracking=tcg, flush=None, rings=None, slots=())))
    assert "not patched" not in text
    assert "tracking   tcg" in text


def test_first_look_has_no_rates_yet() -> None:
    flush = replace(FLUSH, removals_per_second=None, held_share=None)
    ring = RingSnapshot(0, 0, 7, 0, None, None)
    rings = RingsSnapshot(4096, with_bitmap=False, vcpus=(ring,))
    text = "\n".join(shown(with_seen(flush=flush, rings=rings)))
    assert "- removals/s (34,567 in all)" in text
    assert "vCPUs held - of time" in text
    assert "fill ░░░░░░░░░░   0%  reaped ░░░░░░░░░░     -/s  full     0" in text


def test_gone_and_not_there() -> None:
    gone = replace(
        GUEST, presence=Presence.GONE, seconds_since=75.4, problem="nobody \x1b[2Jlistens"
    )
    assert shown(gone) == [
        "web  /run/web.qmp                         QEMU 10.0.13, patched  gone for 75.4 s",
        "             nobody  [2Jlistens",
    ]
    assert shown(replace(gone, state=None, problem="no such file")) == [
        "/run/web.qmp                                                           not there",
        "             no such file",
    ]


def test_silent_guest_keeps_what_was_last_known() -> None:
    lines = shown(
        replace(GUEST, presence=Presence.SILENT, seconds_since=7.0, problem="it does not answer")
    )
    assert lines[0].endswith("QEMU 10.0.13, patched  no answer for 7 s")
    assert lines[1].strip() == "it does not answer"
    assert "  tracking   ring:4096" in lines


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"status": MigrationStatus.COMPLETED, "downtime": 0.03}, "completed, after 61.5 s, do"),
        ({"status": MigrationStatus.FAILED, "error": "cable cut"}, "100 MiB sent, cable cut"),
        ({"status": MigrationStatus("brand-new")}, "brand-new, for 61.5 s"),
        ({"status": MigrationStatus.SETUP, "total": None, "seconds": None}, "setup, iteration 5"),
    ],
)
def test_migration(change: dict[str, Any], words: str) -> None:
    text = " ".join(" ".join(shown(with_seen(migration=replace(MIGRATION, **change)))).split())
    assert words in text


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (
            DirtyRateSnapshot(None, "dirty-ring", 9.0, None, measuring=True),
            "being measured by dirty-ring",
        ),
        (
            DirtyRateSnapshot(None, "page-sampling", 1.0, None, measuring=False),
            "found no memory to sample",
        ),
        (
            DirtyRateSnapshot(0, "page-sampling", 0.8, None, measuring=True),
            "0 B/s by page-sampling for 800 ms",
        ),
        (
            DirtyRateSnapshot(MIB, "dirty-bitmap", 1.0, 4000.0, measuring=False),
            "1 MiB/s by dirty-bitmap for 1 s, 1 h 6 min",
        ),
    ],
)
def test_dirty_rate(rate: DirtyRateSnapshot, words: str) -> None:
    assert words in "\n".join(shown(with_seen(dirty_rate=rate)))


def test_lost_pages_stand_out() -> None:
    lines = guest_lines(with_seen(flush=replace(FLUSH, entries_dropped=3)), 80)
    (line,) = [line for line in lines if "lost pages" in line.plain]
    assert any("red" in str(span.style) for span in line.spans)


LONG = "x" * 300
HOSTILE = with_seen(
    name=f"{LONG}\r\n\x1b[H",
    run_state="guest-panicked",
    slots=tuple(SlotsSnapshot(space, 509, 1 << 62, 400, 1 << 61) for space in (0, 1)),
    migration=replace(MIGRATION, status=MigrationStatus.FAILED, error=f"{LONG} 漢字" * 3),
    rate_refused=f"{LONG}\a",
    flush=replace(FLUSH, writes_trapped=10**15, entries_dropped=10**15, removals=10**15),
    rings=RingsSnapshot(
        65536,
        with_bitmap=True,
        vcpus=tuple(RingSnapshot(n, 65536, 10**15, 10**12, 1e9, 1e6) for n in range(64)),
    ),
)


@pytest.mark.parametrize("width", [20, 40, 80, 132])
@pytest.mark.parametrize("guest", [GUEST, HOSTILE, replace(HOSTILE, socket="漢" * 200)])
def test_no_line_is_too_wide(guest: GuestSnapshot, width: int) -> None:
    for fold in (False, True):
        for line in guest_lines(guest, width, fold_rings=fold):
            assert line.cell_len <= width
            assert line.plain.isprintable()
    for line in plain_ascii(guests_lines([guest], width)):
        assert line.cell_len <= width
        assert line.plain.isascii()
    assert head_line(3, "04:41:07", 0.25, width).cell_len <= width


def test_rings_are_folded_only_where_there_is_no_room() -> None:
    guests = [GUEST, replace(GUEST, socket="/run/other.qmp")]
    tall = guests_lines(guests, 80)
    assert [line.plain for line in guests_lines(guests, 80, len(tall))] == [
        line.plain for line in tall
    ]
    folded = [line.plain for line in guests_lines(guests, 80, len(tall) - 1)]
    assert len(folded) == len(tall) - 2
    assert (
        folded.count("  rings      2 vCPUs, fullest 98% (vCPU 1), reaped 150k/s, 1,234 full exits")
        == 2
    )


def test_cropping_tells_how_much_is_missing() -> None:
    lines = [Text(str(number)) for number in range(10)]
    assert [line.plain for line in cropped(lines, 10)] == [str(number) for number in range(10)]
    assert [line.plain for line in cropped(lines, 4)] == ["0", "1", "2", "… 7 more lines"]


def test_json_document_of_a_guest() -> None:
    plain = json.loads(json.dumps(GUEST.as_dict()))
    assert plain["qemu"] == {
        "version": "10.0.13",
        "package": "Debian 1:10.0.13",
        "patched": True,
    }
    assert plain["tracking"] == {"accelerator": "kvm", "mode": "ring", "ring_entries": 4096}
    assert plain["flush"]["effective"] == "quiesce"
    assert plain["rings"]["vcpus"][1]["reaped_per_second"] == 50_000.0
    assert plain["migration"]["status"] == "active"
    gone = replace(GUEST, presence=Presence.GONE, state=None, problem="no such file").as_dict()
    assert set(gone) == {"socket", "presence", "seconds_since", "problem"}


def test_rates_are_those_between_two_answers() -> None:
    def rings(*vcpus: tuple[int, int, int]) -> DirtyRings:
        listed = [
            {"cpu-index": index, "fill": 5, "reaped": reaped, "full": full}
            for index, reaped, full in vcpus
        ]
        return DirtyRings.model_validate({"size": 1024, "with-bitmap": False, "rings": listed})

    first, plugged = RingsSnapshot.of(rings((0, 600, 3), (1, 50, 0)), rings((0, 100, 1)), 2.0).vcpus
    assert (first.reaped_per_second, first.full_per_second) == (250.0, 1.0)
    assert (plugged.reaped_per_second, plugged.full_per_second) == (None, None)

    def flush(removals: int, hold_ns: int) -> FlushInfo:
        others = ("pages-harvested", "writes-trapped", "holds", "hold-ns-max")
        stats: list[dict[str, object]] = [
            {
                "policy": policy,
                "removals": removals,
                "pages-late": 2 * removals,
                "hold-ns": hold_ns,
                "hold-ns-log2": [],
                **dict.fromkeys(others, 0),
            }
            for policy in ("quiesce", "tombstone")
        ]
        return FlushInfo.model_validate(
            {"policy": "auto", "effective": "quiesce", "entries-dropped": 0, "stats": stats}
        )

    snapshot = FlushSnapshot.of(flush(110, 3_000_000_000), flush(100, 1_000_000_000), 4.0)
    assert (snapshot.removals_per_second, snapshot.pages_late_per_second) == (2.5, 5.0)
    assert (snapshot.held_share, snapshot.hold_seconds) == (0.5, 3.0)


# QEMU's side, where a real one cannot be made to say it

ANSWERS: dict[str, Any] = {
    "query-qmp-schema": schema(
        "query-dirty-rate", calc_dirty_rate={"calc-time": [], "calc-time-unit": []}
    ),
    "query-kvm": {"enabled": False, "present": True},
    "query-name": {},
    "query-status": {"status": "running", "running": True},
    "query-migrate": {},
}
RATE = {"calc-time": 5, "calc-time-unit": "second", "sample-pages": 512, "start-time": 0}
UNSTARTED = {**RATE, "status": "unstarted", "mode": "page-sampling"}
OTHERS = {**RATE, "status": "measured", "mode": "dirty-ring", "dirty-rate": 99}
OURS = {**RATE, "status": "measured", "mode": "page-sampling", "dirty-rate": 5}
MEASURING = {**RATE, "status": "measuring", "mode": "page-sampling"}


async def samples(
    qemu: FakeQemu, rates: list[dict[str, Any]], begun: object, *, measure: bool = True
) -> AsyncIterator[GuestState]:
    """Looks at a QEMU that gives these answers to query-dirty-rate in turn."""
    answers = {**ANSWERS, "calc-dirty-rate": begun}

    async def script(peer: Peer) -> None:
        await peer.open()
        while True:
            try:
                request = await peer.command()
            except EOFError:
                return
            name = request["execute"]
            answer = rates.pop(0) if name == "query-dirty-rate" else answers[name]
            key = "error" if isinstance(answer, Refusal) else "return"
            body = {"class": "GenericError", "desc": str(answer)} if key == "error" else answer
            await peer.send({key: body, "id": request["id"]})

    path = await qemu.unix(script)
    async with GuestPoller({"guest": path}, measure_seconds=0.5 if measure else None) as watch:
        while rates:
            (snapshot,) = await watch.poll(5)
            assert snapshot.problem == ""
            assert snapshot.state is not None
            yield snapshot.state


async def test_what_others_measured_is_not_taken_for_ours(qemu: FakeQemu) -> None:
    rates = [OTHERS, MEASURING, MEASURING, OURS, MEASURING, MEASURING]
    told = [state.dirty_rate async for state in samples(qemu, rates, {})]
    assert [one and (one.bytes_per_second, one.mode, one.measuring) for one in told] == [
        (None, "page-sampling", True),
        (None, "page-sampling", True),
        (5 * MIB, "page-sampling", True),
        (5 * MIB, "page-sampling", True),
    ]


async def test_without_the_option_nothing_is_measured(qemu: FakeQemu) -> None:
    refused = Refusal("nobody shall ask")
    rates = [UNSTARTED, OTHERS]
    states = [one async for one in samples(qemu, rates, refused, measure=False)]
    assert states[0].dirty_rate is None
    assert states[1].dirty_rate is not None
    assert states[1].dirty_rate.bytes_per_second == 99 * MIB
    assert [one.rate_refused for one in states] == ["", ""]


async def test_refused_measurement_is_told(qemu: FakeQemu) -> None:
    states = [one async for one in samples(qemu, [UNSTARTED], Refusal("not now"))]
    assert states[0].rate_refused == "not now"
    assert states[0].dirty_rate is None


async def test_answer_that_does_not_fit_is_a_problem_of_that_guest(qemu: FakeQemu) -> None:
    async def script(peer: Peer) -> None:
        await peer.open()
        await peer.answer([])
        await peer.gone()

    path = await qemu.unix(script)
    async with GuestPoller({"guest": path, "other": path.parent / "none"}) as watch:
        # An empty schema: no QEMU has that, so the next command, query-name, is left unanswered.
        first, second = await watch.poll(0.5)
        assert (first.presence, first.problem) == (Presence.SILENT, "it has not answered yet")
        assert (second.presence, second.state) == (Presence.GONE, None)


# Options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument 'SOCKET...'"),
        (["a", "--interval", "0"], "--interval"),
        (["a", "--count", "0"], "--count"),
    ],
)
def test_options_that_click_refuses(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(top, arguments)
    assert done.exit_code == 2
    assert words in done.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["a", "a"], "named twice"), (["a", "--once", "--count", "2"], "contradict")],
)
def test_usage_errors(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(top, arguments)
    assert isinstance(done.exception, UsageError)
    assert words in str(done.exception)


PAGE = (Path(__file__).resolve().parents[3] / "docs" / "top.md").read_text(encoding="utf-8")


def test_page_has_every_option() -> None:
    described = set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))
    assert described == {option.opts[0] for option in top.params} - {"sockets"}


def test_commands_of_the_page_are_ones_that_parse() -> None:
    lines = re.findall(r"^qemu-ring top (.*?)(?: +[#>].*)?$", PAGE, re.MULTILINE)
    commands = [line for line in lines if line.startswith("/")]
    assert len(commands) >= 4
    for line in commands:
        with click.Context(top) as context:
            top.parse_args(context, line.split())


def test_screen_on_the_page_fits() -> None:
    (screen,) = re.findall(r"```\n(qemu-ring top  .*?)```", PAGE, re.DOTALL)
    assert {"tracking", "flush", "migration", "vCPU"} <= set(screen.split())
    assert max(map(len, screen.splitlines())) == 80


def test_pages_absorbed_are_shown_where_there_are_some() -> None:
    """A QEMU that does not tell, and the bitmap, which has none, show nothing."""

    def shown(absorbed: int | None) -> str:
        state = replace(SEEN, migration=replace(MIGRATION, pages_absorbed=absorbed))
        lines = guest_lines(replace(GUEST, state=state), 120)
        return " ".join(line.plain for line in lines)

    assert "absorbed 12,345 pages" in shown(12_345)
    assert "absorbed" not in shown(None)
    assert "absorbed" not in shown(0)
