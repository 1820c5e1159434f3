"""Measuring a dirty rate: what is refused before anything starts, and how it can end."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from qemu_ring.dirty import (
    MeasuredRate,
    RateMode,
    RateOptions,
    VcpuRate,
    dirty_rates,
    measure_dirty_rate,
)
from qemu_ring.errors import DeadlineError, QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.qmp import CommandError, DisconnectedError
from tests.unit.dirty.conftest import LastWords, Refusal, schema

if TYPE_CHECKING:
    from tests.unit.dirty.conftest import Connect

MODES = ["page-sampling", "dirty-ring", "dirty-bitmap"]
UNITS = ["second", "millisecond"]
Arguments = dict[str, list[str]]
V10: Arguments = {"calc-time": [], "calc-time-unit": UNITS, "sample-pages": [], "mode": MODES}
V7: Arguments = {"calc-time": [], "sample-pages": [], "mode": MODES}
V6: Arguments = {"calc-time": [], "sample-pages": []}
KVM = {"enabled": True, "present": True}
TCG = {"enabled": False, "present": True}
SAMPLING = RateOptions(mode=RateMode.PAGE_SAMPLING, seconds=0.05)


def state(status: str, **more: object) -> dict[str, object]:
    mode = {"mode": "page-sampling", "calc-time": 50, "calc-time-unit": "millisecond"}
    return {"status": status, "sample-pages": 512, **mode, **more}


def answers(arguments: Arguments, **more: Any) -> dict[str, Any]:
    table: dict[str, Any] = {
        "query-kvm": KVM,
        "query-status": {"status": "running", "running": True},
        "query-qmp-schema": schema("x-query-dirty-rings", calc_dirty_rate=arguments),
        "x-query-dirty-rings": {"size": 4096},
        "calc-dirty-rate": {},
        "query-dirty-rate": [state("unstarted")],
    }
    return table | {name.replace("_", "-"): answer for name, answer in more.items()}


def commands_of(asked: list[dict[str, Any]]) -> list[str]:
    return [request["execute"] for request in asked]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seconds": 0}, "seconds 0 is out of range; use 0.05 to 60"),
        ({"seconds": 61}, "seconds 61 is "),
        ({"seconds": float("nan")}, "seconds nan is "),
        ({"sample_pages": 127}, "sample_pages 127 is .* 128 to 16384"),
        ({"sample_pages": 16385}, "sample_pages 16385 is"),
        ({"sample_pages": 512}, "only mode page-sampling"),
        ({"sample_pages": 512, "mode": RateMode.DIRTY_RING}, "only mode page-sampling"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RateOptions(**options)


@pytest.mark.parametrize(
    ("arguments", "options", "more", "words"),
    [
        ({}, {}, {}, r"10\.0\.2 cannot measure a dirty rate; use QEMU 5\.2"),
        (V6, {"mode": RateMode.DIRTY_RING}, {}, "by dirty-ring; measure by page-sampling"),
        (V7, {"seconds": 1.5}, {}, "whole seconds only; use 2 s, or QEMU 8.2"),
        (V7, {"seconds": 0.1}, {}, "use 1 s,"),
        # QEMU 7.2 would crash.
        (V7, {"mode": RateMode.DIRTY_RING}, {"query_kvm": TCG}, "takes KVM, which this guest"),
        (V10, {"mode": RateMode.DIRTY_BITMAP}, {"query_kvm": TCG}, "takes KVM, which this guest"),
    ],
)
async def test_refused_before_anything_starts(
    connect: Connect,
    arguments: Arguments,
    options: dict[str, Any],
    more: dict[str, Any],
    words: str,
) -> None:
    monitor, asked = await connect(answers(arguments, **more))
    async with monitor:
        with pytest.raises(QemuUnsuitableError, match=words):
            await measure_dirty_rate(monitor, RateOptions(**options))
    assert "calc-dirty-rate" not in commands_of(asked)


async def test_mode_that_the_guest_s_tracking_has_not(connect: Connect) -> None:
    refusal = Refusal("mode dirty-bitmap is not enabled, use other method instead.")
    monitor, _ = await connect(answers(V10, calc_dirty_rate=refusal))
    async with monitor:
        with pytest.raises(
            QemuUnsuitableError,
            match=r"by dirty-bitmap: this guest's tracking is ring:4096; measure by dirty-ring",
        ):
            await measure_dirty_rate(monitor, RateOptions(mode=RateMode.DIRTY_BITMAP))


async def test_refusal_for_another_reason_stays_as_it_is(connect: Connect) -> None:
    monitor, _ = await connect(answers(V10, calc_dirty_rate=Refusal("not today")))
    async with monitor:
        for mode in (RateMode.DIRTY_RING, RateMode.PAGE_SAMPLING):
            with pytest.raises(CommandError, match="not today"):
                await measure_dirty_rate(monitor, RateOptions(mode=mode))


@pytest.mark.parametrize("quicker", [False, True])
async def test_measured_by_someone_else_already(connect: Connect, quicker: bool) -> None:
    busy = state("measuring", **{"mode": "dirty-ring", "calc-time": 9000})
    monitor, asked = await connect(
        answers(
            V10,
            query_dirty_rate=[state("measured"), busy] if quicker else [busy],
            calc_dirty_rate=Refusal("the dirty rate is already being measured."),
        )
    )
    async with monitor:
        with pytest.raises(QemuRingError, match=r"already, by dirty-ring for 9 s; .*try again"):
            await measure_dirty_rate(monitor, SAMPLING)
    assert ("calc-dirty-rate" in commands_of(asked)) is quicker


async def test_someone_else_was_let_in_at_the_same_time(connect: Connect) -> None:
    theirs = state("measured", **{"mode": "dirty-ring", "dirty-rate": 7})
    monitor, _ = await connect(answers(V10, query_dirty_rate=[state("unstarted"), theirs]))
    async with monitor:
        with pytest.raises(QemuRingError, match="at the same time, by dirty-ring; one at a time"):
            await measure_dirty_rate(monitor, SAMPLING)


async def test_nothing_was_sampled(connect: Connect) -> None:
    nothing = state("measured", **{"dirty-rate": -1})
    monitor, _ = await connect(answers(V10, query_dirty_rate=[state("unstarted"), nothing]))
    async with monitor:
        with pytest.raises(QemuRingError, match=r"no memory to sample; .*16384 pages"):
            await measure_dirty_rate(monitor, SAMPLING)


async def test_qemu_that_never_ends(connect: Connect) -> None:
    monitor, _ = await connect(
        answers(V10, query_dirty_rate=[state("unstarted"), state("measuring")])
    )
    async with monitor:
        with pytest.raises(DeadlineError, match=r"within 0\.1 s more than the 0\.05 s asked for"):
            await measure_dirty_rate(monitor, SAMPLING, grace=0.1)


async def test_lost_monitor_ends_the_wait_at_once(connect: Connect) -> None:
    monitor, _ = await connect(answers(V10, calc_dirty_rate=LastWords()))
    async with monitor:
        started = time.monotonic()
        with pytest.raises(DisconnectedError):
            await measure_dirty_rate(monitor, RateOptions(seconds=60))
        assert time.monotonic() - started < 30


async def test_ring_measured_to_the_millisecond(connect: Connect) -> None:
    each = [{"id": 0, "dirty-rate": 3}, {"id": 1, "dirty-rate": 4}]
    done = state(
        "measured",
        **{"mode": "dirty-ring", "dirty-rate": 7, "vcpu-dirty-rate": each, "calc-time": 52},
    )
    progress = [state("measured", **{"dirty-rate": 1}), state("unstarted"), done]
    monitor, asked = await connect(answers(V10, query_dirty_rate=progress))
    async with monitor:
        rate = await measure_dirty_rate(monitor, RateOptions(seconds=0.05))
    vcpus = (VcpuRate(0, 3 << 20), VcpuRate(1, 4 << 20))
    assert rate == MeasuredRate(RateMode.DIRTY_RING, 0.052, 7 << 20, vcpus)
    each_in_bytes = [
        {"vcpu": 0, "bytes_per_second": 3 << 20},
        {"vcpu": 1, "bytes_per_second": 4 << 20},
    ]
    assert json.loads(json.dumps(rate.as_dict())) == {
        "mode": "dirty-ring",
        "seconds": 0.052,
        "bytes_per_second": 7 << 20,
        "vcpus": each_in_bytes,
        "run_state": "running",
        "stalled": [],
    }
    assert {
        "execute": "calc-dirty-rate",
        "calc-time": 50,
        "calc-time-unit": "millisecond",
        "mode": "dirty-ring",
    } in asked
    assert asked[-2] == {"execute": "query-dirty-rate", "calc-time-unit": "millisecond"}


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (["running", "running"], "running"),
        (["paused", "paused"], "paused"),
        (["paused", "running"], "paused"),
        (["running", "io-error"], "io-error"),
    ],
)
async def test_state_in_which_a_guest_writes_nothing(
    connect: Connect, states: list[str], told: str
) -> None:
    progress = [state("unstarted"), state("measured", dirty_rate=0) | {"dirty-rate": 0}]
    status = [{"status": one, "running": one == "running"} for one in states]
    table = answers(V10, query_dirty_rate=progress, query_status=status)
    monitor, _ = await connect(table)
    async with monitor:
        rate = await measure_dirty_rate(monitor, SAMPLING)
    assert (rate.bytes_per_second, rate.run_state) == (0, told)


async def test_oldest_is_asked_for_nothing_that_it_does_not_know(connect: Connect) -> None:
    """QEMU 6.0: no modes, no unit, and its answers name neither."""
    oldest: Arguments = {"calc-time": []}
    done = {"status": "measured", "dirty-rate": 5, "start-time": 1, "calc-time": 1}
    progress = [{**done, "status": "unstarted"}, done]
    monitor, asked = await connect(answers(oldest, query_dirty_rate=progress))
    async with monitor:
        rate = await measure_dirty_rate(monitor)
    assert rate == MeasuredRate(RateMode.PAGE_SAMPLING, 1.0, 5 << 20)
    assert {"execute": "calc-dirty-rate", "calc-time": 1} in asked


async def test_stream(connect: Connect) -> None:
    progress = [
        answer
        for rate in (1, 2, 3)
        for answer in (state("unstarted"), state("measured", **{"dirty-rate": rate}))
    ]
    monitor, asked = await connect(answers(V10, query_dirty_rate=progress))
    rates = []
    async with monitor:
        async for rate in dirty_rates(monitor, SAMPLING):
            rates.append(rate.bytes_per_second >> 20)
            if len(rates) == 3:
                break
    assert rates == [1, 2, 3]
    assert commands_of(asked).count("calc-dirty-rate") == 3
    assert commands_of(asked).count("query-kvm") == 0  # page sampling needs no KVM
