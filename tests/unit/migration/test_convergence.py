"""What is decided for a goal, by figures as QEMU gives them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration import (
    AutoConverge,
    Exec,
    Goal,
    GoalAction,
    GoalDecision,
    GoalThen,
    MigrationPlan,
    Postcopy,
    Sample,
)
from qemu_ring.migration.engine.convergence import Convergence
from qemu_ring.migration.engine.settings import source_settings
from qemu_ring.migration.engine.throttling import Throttle
from qemu_ring.qmp import MigrationStatus

MIB = 1 << 20
BANDWIDTH = 100 * MIB


@dataclass
class Course:
    """How a migration went: whether and when it switched over, and what was decided."""

    seconds: float
    completed: bool
    decisions: tuple[GoalDecision, ...]

    def actions(self) -> list[GoalAction]:
        return [one.action for one in self.decisions]


def course(
    convergence: Convergence,
    *,
    dirty_rate: float,
    working_set: float = 512 * MIB,
    memory: float = 1024 * MIB,
    longest: float = 200.0,
) -> Course:
    """Reckon a migration pass by pass: what is dirtied in one is what the next has to send."""
    now, remaining, iteration, throttle = 0.0, float(memory), 1, 0
    rate = dirty_rate
    while now < longest:
        seconds = max((remaining - convergence.downtime_limit * BANDWIDTH) / BANDWIDTH, 0.01)
        left = remaining
        for moment in [0.0, *(0.1 * one for one in range(1, int(seconds * 10)))]:
            left = remaining - BANDWIDTH * moment
            made = convergence.observe(
                Sample(
                    seconds=now + moment,
                    status=MigrationStatus.ACTIVE,
                    iteration=iteration,
                    transferred=0,
                    remaining=int(left),
                    dirty_rate=int(rate) if iteration > 1 else 0,
                    bandwidth=BANDWIDTH,
                    expected_downtime=None,
                    throttle=throttle,
                    ring_full_seconds=None,
                    throttle_seconds=None,
                )
            )
            actions = [one.action for one in made]
            if GoalAction.CANCEL in actions or GoalAction.POSTCOPY in actions:
                return Course(now + moment, False, convergence.decisions)
            if GoalAction.THROTTLE in actions:
                rate = dirty_rate / 4
                throttle = 75
        now += seconds
        kept_back = remaining - BANDWIDTH * seconds
        remaining = min(max(kept_back, 0.0) + rate * seconds, working_set)
        if remaining <= convergence.downtime_limit * BANDWIDTH:
            return Course(now, True, convergence.decisions)
        iteration += 1
    return Course(now, False, convergence.decisions)


def test_guest_that_converges_keeps_to_the_least_downtime() -> None:
    convergence = Convergence(Goal(60, 0.4, "cancel"))
    went = course(convergence, dirty_rate=20 * MIB)
    assert went.completed
    assert went.decisions == ()
    assert convergence.downtime_limit == pytest.approx(0.05)
    assert convergence.outcome(went.seconds, 0.06).kept


def test_guest_that_just_converges_gets_more_downtime() -> None:
    """It writes the same 30 MiB again and again: 300 ms at this bandwidth."""
    convergence = Convergence(Goal(60, 0.4, "cancel"))
    went = course(convergence, dirty_rate=200 * MIB, working_set=30 * MIB)
    assert went.completed
    assert went.actions() == [GoalAction.LIMIT]
    [raised] = went.decisions
    assert raised.parameters == {"downtime-limit": 400}
    assert raised.what == "downtime limit 50 to 400 ms"
    assert "had no less to send" in raised.reason
    assert raised.figures.downtime_needed == pytest.approx(0.3)
    assert raised.figures.passes_without_progress >= 3


def test_downtime_is_raised_no_further_than_needed() -> None:
    convergence = Convergence(Goal(60, 0.8, "cancel"))
    course(convergence, dirty_rate=200 * MIB, working_set=15 * MIB)
    assert [one.parameters for one in convergence.decisions] == [{"downtime-limit": 200}]


def test_guest_that_never_does_is_known_long_before_the_time_is_over() -> None:
    convergence = Convergence(Goal(120, 0.4, "cancel"))
    went = course(convergence, dirty_rate=300 * MIB)
    assert not went.completed
    assert went.actions()[-1] is GoalAction.CANCEL
    assert went.seconds < 60
    last = went.decisions[-1]
    assert "3 passes in a row had no less to send: the guest dirties memory as fast" in last.reason
    assert str(last).startswith(f"{last.seconds:.1f} s: cancel: 3 passes in a row")
    assert "512.0 MiB left, 5,120 ms of downtime at 100.0 MiB/s, 300.0 MiB/s dirtied" in str(last)
    outcome = convergence.failed()
    assert not outcome.kept
    assert outcome.known_at == last.seconds
    assert outcome.reason == last.reason


def test_one_that_would_be_late_is_known_by_its_pace() -> None:
    """It does converge, at 5 MiB a second."""
    convergence = Convergence(Goal(40, 0.1, "cancel"))
    went = course(convergence, dirty_rate=95 * MIB, memory=512 * MIB)
    assert went.actions()[-1] is GoalAction.CANCEL
    assert "at this pace it takes" in went.decisions[-1].reason
    assert went.seconds < 35


def test_waiting_tells_once_and_goes_on() -> None:
    convergence = Convergence(Goal(40, 0.4, "wait"))
    went = course(convergence, dirty_rate=300 * MIB)
    assert went.seconds >= 200
    assert went.actions().count(GoalAction.MISS) == 1
    outcome = convergence.outcome(200.0, 0.5)
    assert not outcome.kept
    assert "it took 200.0 s, 40 s were the goal: 3 passes" in outcome.reason
    assert "stood still for 500 ms, 400 ms were the goal" in outcome.reason
    assert outcome.known_at is not None
    assert outcome.known_at < 40


def test_switches_to_postcopy_when_that_is_known() -> None:
    convergence = Convergence(Goal(120, 0.4, "postcopy"))
    went = course(convergence, dirty_rate=300 * MIB)
    assert went.actions()[-1] is GoalAction.POSTCOPY
    assert went.seconds < 60


def test_switches_to_postcopy_while_the_rest_can_be_sent_in_time() -> None:
    """Passes of 5 s: three of them would be too late."""
    convergence = Convergence(Goal(24, 0.4, "postcopy"))
    went = course(convergence, dirty_rate=300 * MIB)
    assert went.actions()[-1] is GoalAction.POSTCOPY
    assert went.seconds + 512 * MIB / BANDWIDTH <= 24
    assert "are left, and the rest takes 5.1 s" in went.decisions[-1].reason


@pytest.mark.parametrize("means", ["auto-converge", "dirty-limit"])
def test_throttles_and_then_converges(means: str) -> None:
    throttle = Throttle(means, vcpus=2)  # type: ignore[arg-type]
    convergence = Convergence(Goal(120, 0.4), throttle)
    went = course(convergence, dirty_rate=300 * MIB)
    assert went.completed
    assert went.actions().count(GoalAction.THROTTLE) == 1
    [throttled] = [one for one in went.decisions if one.action is GoalAction.THROTTLE]
    if means == "dirty-limit":
        assert throttled.what == "throttle by dirty-limit, 25 MiB/s for each vCPU"
        assert throttled.parameters["vcpu-dirty-limit"] == 25
    else:
        assert throttled.parameters["max-cpu-throttle"] == 99
    assert convergence.outcome(went.seconds, None).throttle == means


def test_gives_up_when_throttling_does_not_help() -> None:
    """A quarter of it is still more than can be sent; auto-converge stands at 75 percent."""
    throttle = Throttle("dirty-limit", vcpus=1, least=16 * MIB)
    convergence = Convergence(Goal(500, 0.4), throttle)
    went = course(convergence, dirty_rate=3000 * MIB, longest=500)
    limits = [one.parameters["vcpu-dirty-limit"] for one in went.decisions if "limit," in one.what]
    assert limits == [50, 25, 16]
    assert went.actions()[-1] is GoalAction.CANCEL
    assert "cannot be slowed down further" in went.decisions[-1].reason
    last = [one for one in went.decisions if one.action is GoalAction.THROTTLE][-1]
    assert went.seconds > last.seconds + 20  # the last step had time to take hold


def active(seconds: float, iteration: int, remaining: int, bandwidth: float) -> Sample:
    state = MigrationStatus.ACTIVE
    rest = (None, None, None, None)
    return Sample(seconds, state, iteration, 0, remaining, MIB, bandwidth, *rest)


def test_first_pass_over_zero_pages_does_not_make_the_channel_slow() -> None:
    """They are next to no bytes: QEMU measures half a MiB a second, and tells it a while longer."""
    convergence = Convergence(Goal(15, 0.2, "postcopy"))
    for tenth in range(1, 15):
        assert convergence.observe(active(tenth / 10, 1, 900 * MIB // tenth, MIB / 2)) == []
    for seconds in (1.5, 1.55, 1.6, 1.65):
        assert convergence.observe(active(seconds, 2, 10 * MIB, MIB / 2)) == []
    assert convergence.observe(active(1.75, 2, 5 * MIB, BANDWIDTH)) == []
    assert convergence.observe(active(1.85, 3, 2 * MIB, BANDWIDTH)) == []
    assert convergence.decisions == ()


def test_bandwidth_of_a_pause_is_not_the_channels() -> None:
    convergence = Convergence(Goal(15, 0.2, "postcopy"))
    for tenth in range(30):
        assert convergence.observe(active(tenth / 10, 1 + tenth // 10, 10 * MIB, BANDWIDTH)) == []
    convergence.resumed(60)
    assert convergence.observe(active(63, 3, 10 * MIB, MIB)) == []
    assert convergence.observe(active(63.1, 3, 9 * MIB, MIB)) == []
    assert convergence.observe(active(63.3, 3, 8 * MIB, BANDWIDTH)) == []


def test_pass_that_had_more_to_send_is_no_sign_of_progress() -> None:
    """It hovers about what it dirties in a pass: by its pace it is late, or it never will."""
    convergence = Convergence(Goal(60, 0.2, "cancel"))
    convergence.observe(active(0, 1, 128 * MIB, 50 * MIB))
    made = []
    for number, remaining in enumerate((127, 126, 127.5, 118, 126, 112), 2):
        begun = 2.5 * (number - 1)
        for moment in (0.0, 0.3, 1.0):
            left = int((remaining - 50 * moment) * MIB)
            made += convergence.observe(active(begun + moment, number, left, 50 * MIB))
    assert [one.action for one in made if one.action is not GoalAction.LIMIT] == [GoalAction.CANCEL]
    [cancelled] = [one for one in made if one.action is GoalAction.CANCEL]
    assert cancelled.figures.iteration == 4
    assert cancelled.reason == "the latest passes had no less to send, one after the other"
    assert cancelled.as_dict()["figures"]["seconds_needed"] is None  # type: ignore[index]


def test_time_that_is_over() -> None:
    for then in ("cancel", "throttle", "postcopy"):
        throttle = Throttle("auto-converge") if then == "throttle" else None
        convergence = Convergence(Goal(5, 0.4, then), throttle)
        went = course(convergence, dirty_rate=0, memory=4096 * MIB)
        assert went.seconds == pytest.approx(5, abs=0.2)
        assert went.decisions[-1].reason == "it did not converge within 5 s"
        assert "the first pass alone takes 41 s at this pace" in went.decisions[0].reason
        assert convergence.failed().known_at == went.decisions[0].seconds


def test_waiting_allows_all_of_the_downtime_though_the_first_pass_was_too_long() -> None:
    convergence = Convergence(Goal(5, 0.4, "wait"))
    went = course(convergence, dirty_rate=200 * MIB, working_set=30 * MIB)
    assert went.completed
    assert went.actions() == [GoalAction.MISS, GoalAction.LIMIT]
    assert convergence.downtime_limit == 0.4


def test_time_of_a_pause_does_not_count() -> None:
    convergence = Convergence(Goal(5, 0.4, "cancel"))
    convergence.resumed(100)
    went = course(convergence, dirty_rate=0, memory=4096 * MIB)
    assert went.completed
    assert convergence.outcome(went.seconds, 0.1).kept


def test_nothing_is_decided_of_other_states() -> None:
    convergence = Convergence(Goal(0.001, 0.4, "cancel"))
    for status in ("setup", "device", "pre-switchover", "postcopy-active", "completed"):
        sample = Sample(9.0, MigrationStatus(status), 5, 0, MIB, MIB, 1.0, None, None, None, None)
        assert convergence.observe(sample) == []


# The plan


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Goal(0), "within 0 s is not greater than 0"),
        (lambda: Goal(float("nan")), "within nan"),
        (lambda: Goal(1, 0), "downtime 0 s would be no limit"),
        (lambda: Goal(1, 2001), "downtime 2001 is out of range"),
        (lambda: Goal(1, 1, cast("GoalThen", "give-up")), "then cannot be 'give-up'"),
        (lambda: Goal(1, postcopy_bandwidth=99), "is for postcopy, and the goal takes none"),
        (lambda: Goal(1, 1, "postcopy", -1), "out of range"),
        (lambda: MigrationPlan(goal=Goal(1), kind=Postcopy()), "not for postcopy; postcopy can"),
        (
            lambda: MigrationPlan(goal=Goal(1), downtime_limit=1),
            "limit cannot be beside",
        ),
        (
            lambda: MigrationPlan(goal=Goal(1), throttle=AutoConverge()),
            "throttle cannot be beside",
        ),
        (
            lambda: MigrationPlan(goal=Goal(1, 1, "postcopy"), channel=Exec("cat", "cat")),
            "goes both ways",
        ),
    ],
)
def test_refused(make: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()  # type: ignore[operator]


def test_all_that_may_be_needed_is_set_up_from_the_start() -> None:
    plan = MigrationPlan(goal=Goal(60, 0.4, "postcopy", postcopy_bandwidth=77))
    settings = source_settings(plan)
    assert "postcopy-ram" in settings.capabilities
    assert settings.parameters == {"downtime-limit": 50, "max-postcopy-bandwidth": 77}
    throttled = source_settings(MigrationPlan(goal=Goal(60)), Throttle("auto-converge"))
    assert "auto-converge" in throttled.capabilities
    assert throttled.parameters["max-cpu-throttle"] == 1
    assert throttled.parameters["throttle-trigger-threshold"] == 100
