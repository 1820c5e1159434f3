"""The timeline: every pass is in it, with the figures that belong to it or with none."""

from __future__ import annotations

from qemu_ring.migration.timeline import Iteration, TimelineRecorder
from qemu_ring.qmp import MigrationInfo

T0 = 0.0


def reply(
    sync: int,
    transferred: int,
    remaining: int,
    status: str = "active",
    more: dict[str, object] | None = None,
) -> MigrationInfo:
    ram = {
        "transferred": transferred,
        "remaining": remaining,
        "total": 1 << 20,
        "duplicate": 0,
        "normal": 0,
        "normal-bytes": 0,
        "dirty-pages-rate": 10 * sync,
        "mbps": 8.0,
        "dirty-sync-count": sync,
        "page-size": 4096,
    }
    return MigrationInfo.model_validate({"status": status, "ram": ram, **(more or {})})


def test_passes_that_were_asked_about_in_time() -> None:
    recorder = TimelineRecorder(T0)
    recorder.begin(1, T0 + 1)
    throttled: dict[str, object] = {
        "expected-downtime": 300,
        "cpu-throttle-percentage": 20,
        "dirty-limit-ring-full-time": 500_000,
    }
    recorder.add(reply(1, 0, 1000, more=throttled))
    assert recorder.end_passes() == []
    recorder.add(reply(1, 600, 400))
    recorder.begin(2, T0 + 3)
    assert recorder.end_passes() == []  # its bytes are known once the next has been asked about
    recorder.add(reply(2, 1000, 200))
    [first] = recorder.end_passes()
    assert first == Iteration(
        number=1,
        started=1,
        seconds=2,
        remaining=1000,
        bytes_sent=1000,
        bandwidth=500,
        dirty_rate=40960,
        expected_downtime=0.3,
        throttle=20,
        ring_full_seconds=0.5,
    )
    recorder.add(reply(2, 1200, 0, "completed"))
    [second] = recorder.end_passes(over=T0 + 4)
    assert (second.number, second.remaining, second.bytes_sent) == (2, 200, 200)
    assert second.bandwidth is None, "sockets took it in; the link has not sent it yet"
    assert recorder.timeline.iterations == (first, second)
    assert len(recorder.timeline.samples) == 4


def test_a_pass_that_qemu_had_left_behind_is_listed_without_figures() -> None:
    recorder = TimelineRecorder(T0)
    recorder.begin(1, T0 + 1)
    recorder.add(reply(1, 0, 1000))
    recorder.begin(2, T0 + 2)
    recorder.add(reply(3, 1500, 100))
    [first] = recorder.end_passes()
    assert (first.number, first.bytes_sent) == (1, None)
    recorder.begin(3, T0 + 2.5)
    recorder.add(reply(3, 1500, 100))
    [second] = recorder.end_passes()
    assert second == Iteration(2, 2, 0.5)
    [third] = recorder.end_passes(over=T0 + 3)
    assert third.remaining == 100
    assert [one.number for one in recorder.timeline.iterations] == [1, 2, 3]


def test_only_pass_has_its_bandwidth() -> None:
    recorder = TimelineRecorder(T0)
    recorder.begin(1, T0 + 1)
    recorder.add(reply(1, 0, 1000))
    recorder.add(reply(1, 1000, 0, "completed"))
    [only] = recorder.end_passes(over=T0 + 3)
    assert (only.bytes_sent, only.bandwidth) == (1000, 500)


def test_last_reply_tells_nothing_of_how_the_last_pass_began() -> None:
    recorder = TimelineRecorder(T0)
    recorder.begin(1, T0 + 1)
    recorder.add(reply(1, 100, 0, "completed"))
    [only] = recorder.end_passes(over=T0 + 2)
    assert only.remaining is None


def test_many_samples_are_thinned_out() -> None:
    recorder = TimelineRecorder(T0, keep_samples=10)
    for count in range(100):
        recorder.add(reply(1, count, 0))
    samples = recorder.timeline.samples
    assert len(samples) <= 10
    assert samples[0].transferred == 0
    assert samples[-1].transferred == 99


def test_no_figures_yet() -> None:
    recorder = TimelineRecorder(T0)
    assert recorder.add(MigrationInfo()) is None
    assert recorder.latest is None
    assert recorder.end_passes(over=T0) == []
