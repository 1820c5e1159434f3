"""Deciding, from QEMU's figures alone, what gets a migration to its goal."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from statistics import median
from typing import Final, NamedTuple

from qemu_ring.migration.engine.throttling import Throttle
from qemu_ring.migration.goal import Goal, GoalAction, GoalDecision, GoalFigures, GoalOutcome
from qemu_ring.migration.timeline import Sample
from qemu_ring.migration.values import milliseconds
from qemu_ring.qmp import MigrationStatus

__all__ = ["Convergence"]

_SHARES: Final = (0.125, 0.25, 0.5, 1.0)
"""Of the goal's downtime, that are allowed one after the other."""
_STALL_PASSES: Final = 3
_PROGRESS: Final = 0.05
"""Of what is too much to send, by which it has to become less."""
_LATE_PASSES: Final = 2
_WINDOW: Final = 4
"""Passes, by which it is reckoned how fast it becomes less."""
_BANDWIDTHS: Final = 5
_BANDWIDTH_SECONDS: Final = 0.2
"""Until QEMU's figure, of a tenth of a second, tells nothing of what was before."""
_NEVER_PASSES: Final = 3
"""Begun, from which on it can be said that they get no further."""
_MARGIN: Final = 1.1
_SWITCH_MARGIN: Final = 1.25
_FIRST_PASS_SHARE: Final = 0.25
"""Of the goal's time, after which the first pass' pace tells something."""


class _PassStart(NamedTuple):
    seconds: float
    remaining: int


class Convergence:
    """Decides; an object for one migration, and whoever has it carries the decisions out.

    Args:
        goal: to keep to.
        throttle: the means that QEMU was set up for; None for none.
    """

    def __init__(self, goal: Goal, throttle: Throttle | None = None) -> None:
        self.goal = goal
        self._throttle = throttle
        self._steps = [max(goal.downtime * share, 0.001) for share in _SHARES]
        self._step = 0
        self._level: int | None = None  # of throttling; None before it has begun
        self._at_most = False  # the guest cannot be slowed down further
        self._done = False  # postcopy or cancelling was decided: nothing is left to decide
        self._missed = False
        self._decisions: list[GoalDecision] = []
        self._bandwidths: deque[float] = deque(maxlen=_BANDWIDTHS)
        self._bandwidth_from = 0.0
        self._bandwidth_is_stale = False
        self._starts: deque[_PassStart] = deque(maxlen=_WINDOW)
        self._iteration = 0
        self._first: _PassStart | None = None
        self._first_pass_over: float | None = None
        self._least: int | None = None
        self._progress_at = 0.0
        self._without_progress = 0
        self._late = 0
        self._paused_seconds = 0.0

    @property
    def downtime_limit(self) -> float:
        """Seconds that are allowed now."""
        return self._steps[self._step]

    @property
    def decisions(self) -> tuple[GoalDecision, ...]:
        """All so far."""
        return tuple(self._decisions)

    def allow(self, downtime: float) -> None:
        """Change the goal's downtime, and allow all of it at once.

        Raises:
            UsageError: no goal can have it.
        """
        self.goal = replace(self.goal, downtime=downtime)
        self._steps, self._step = [downtime], 0
        self._restart()

    def end(self) -> None:
        """Decide nothing any more."""
        self._done = True

    def resumed(self, paused_seconds: float) -> None:
        """Leave a time out of account in which nothing was to be sent."""
        self._paused_seconds += paused_seconds
        self._bandwidth_is_stale = True  # it is that of the pause
        self._restart()

    def observe(self, sample: Sample) -> list[GoalDecision]:
        """Take QEMU's figures of a moment; returns what is to be done now, in this order."""
        if self._done or sample.status is not MigrationStatus.ACTIVE:
            return []
        begun = sample.iteration > self._iteration
        self._note_bandwidth(sample)
        if begun:
            self._note_pass(sample)
        made = self._decide(sample, begun=begun)
        self._decisions += made
        return made

    def outcome(self, seconds: float, downtime: float | None) -> GoalOutcome:
        """Tell whether it was kept by a migration that completed.

        Args:
            seconds: that it took.
            downtime: that the guest stood still; None if it did not run, or it is not known.
        """
        taken, goal = seconds - self._paused_seconds, self.goal
        reasons, known = [], None
        if taken > goal.within:
            known = next((one for one in self._decisions if one.action in _FATAL), None)
            why = f": {known.reason}" if known else ""
            reasons.append(f"it took {taken:.1f} s, {goal.within:g} s were the goal{why}")
        if downtime is not None and downtime > goal.downtime:
            reasons.append(
                f"the guest stood still for {downtime * 1000:.0f} ms, {goal.downtime * 1000:.0f} "
                f"ms were the goal; QEMU was allowed {self.downtime_limit * 1000:.0f} ms for memory"
            )
        at_end = seconds if reasons else None
        return self._outcome(reasons, at_end if known is None else known.seconds)

    def failed(self) -> GoalOutcome:
        """Tell why it was not kept by a migration that did not complete."""
        known = next((one for one in self._decisions if one.action in _FATAL), None)
        if known is None:
            return self._outcome(["the migration did not complete"], None)
        return self._outcome([known.reason], known.seconds)

    def _outcome(self, reasons: list[str], known_at: float | None) -> GoalOutcome:
        means = "" if self._throttle is None else self._throttle.means
        words = "; ".join(reasons)
        return GoalOutcome(self.goal, not reasons, words, known_at, means, self.decisions)

    # GoalFigures

    def _note_bandwidth(self, sample: Sample) -> None:
        if self._iteration < 2 <= sample.iteration:
            # Zero pages are next to no bytes: a first pass of many looks like a slow channel.
            self._bandwidth_is_stale = True
        if self._bandwidth_is_stale:
            self._bandwidth_is_stale = False
            self._bandwidths.clear()
            self._bandwidth_from = sample.seconds + _BANDWIDTH_SECONDS
        if sample.bandwidth > 0 and sample.seconds >= self._bandwidth_from:
            self._bandwidths.append(sample.bandwidth)

    def _note_pass(self, sample: Sample) -> None:
        passes = sample.iteration - self._iteration
        self._iteration = sample.iteration
        start = _PassStart(sample.seconds, sample.remaining)
        if self._first is None:
            self._first = start
        if sample.iteration < 2:
            return  # all memory is left, dirtied or not
        if self._first_pass_over is None:
            self._first_pass_over = self._elapsed(sample)
        self._starts.append(start)
        if self._is_less(sample.remaining):
            self._least, self._progress_at = sample.remaining, sample.seconds
            self._without_progress = 0
        else:
            self._without_progress += passes
        needed = self._seconds_needed(sample)
        if needed == math.inf and not self._may_have_stalled(sample):
            return  # too soon to say so; yet it is no sign that it gets on
        is_late = needed is not None and self._elapsed(sample) + needed > self.goal.within
        self._late = self._late + 1 if is_late else 0

    def _is_less(self, remaining: int) -> bool:
        """Whether what is too much for the goal's downtime has become less, or all that is left."""
        if self._least is None or remaining < self._least * (1 - _PROGRESS):
            return True
        sendable = self.goal.downtime * self._bandwidth
        return 0 < remaining - sendable < (self._least - sendable) * (1 - _PROGRESS)

    def _restart(self) -> None:
        """Watch for a stall anew, because something was changed."""
        self._least, self._without_progress, self._late = None, 0, 0
        self._starts.clear()

    @property
    def _bandwidth(self) -> float:
        return median(self._bandwidths) if self._bandwidths else 0.0

    def _elapsed(self, sample: Sample) -> float:
        return sample.seconds - self._paused_seconds

    def _downtime_needed(self, remaining: int) -> float | None:
        return remaining / self._bandwidth if self._bandwidth else None

    def _seconds_needed(self, sample: Sample) -> float | None:
        """As in the figures, but infinite if it never can."""
        if len(self._starts) < 2 or not self._bandwidth:
            return None
        first, last = self._starts[0], self._starts[-1]
        excess = last.remaining - self.goal.downtime * self._bandwidth
        if excess <= 0:
            return 0.0
        drained, seconds = first.remaining - last.remaining, last.seconds - first.seconds
        if drained <= 0 or seconds <= 0:
            return math.inf if len(self._starts) >= _NEVER_PASSES else None
        return max(excess / (drained / seconds) - (sample.seconds - last.seconds), 0.0)

    def _figures(self, sample: Sample) -> GoalFigures:
        seconds_needed = self._seconds_needed(sample)
        return GoalFigures(
            iteration=sample.iteration,
            remaining=sample.remaining,
            bandwidth=self._bandwidth,
            dirty_rate=sample.dirty_rate,
            downtime_needed=self._downtime_needed(sample.remaining),
            seconds_needed=None if seconds_needed == math.inf else seconds_needed,
            passes_without_progress=self._without_progress,
            throttle=sample.throttle,
        )

    # Decisions

    def _decide(self, sample: Sample, *, begun: bool) -> list[GoalDecision]:
        elapsed = self._elapsed(sample)
        if elapsed >= self.goal.within:
            return self._time_is_over(sample)
        if self._iteration < 2:
            return self._in_first_pass(sample, elapsed)
        needed = self._downtime_needed(self._starts[-1].remaining if self._starts else 0)
        if needed is None:
            return []
        if not begun:
            return self._switch_in_time(sample, elapsed, needed)
        stalled, late = self._is_stalled(sample), self._late >= _LATE_PASSES
        made: list[GoalDecision] = []
        due = self._step < self._step_due(elapsed) and needed > self.downtime_limit
        if self._step < len(self._steps) - 1 and (stalled or late or due):
            made.append(self._raise_limit(sample, elapsed, needed, stalled=stalled, late=late))
        if not (stalled or late):
            return made
        if needed <= self.goal.downtime:
            if made:
                self._restart()
            return made
        why = self._why_stalled(sample, needed) if stalled else self._why_late(sample, elapsed)
        made += self._then(sample, why)
        self._restart()
        return made

    def _is_stalled(self, sample: Sample) -> bool:
        return self._without_progress >= _STALL_PASSES and self._may_have_stalled(sample)

    def _may_have_stalled(self, sample: Sample) -> bool:
        """Whether the last progress is long enough ago."""
        within = self.goal.within
        # A throttle takes hold step by step, a step in some seconds.
        least = min(1.0, within / 20) if self._level is None else min(10.0, within / 8)
        return sample.seconds - self._progress_at >= least

    def _step_due(self, elapsed: float) -> int:
        """By half of the time after the first pass all of the goal's downtime is allowed."""
        since = self._first_pass_over or 0.0
        share = 2 * (elapsed - since) / (self.goal.within - since)
        return min(int(share * len(self._steps)), len(self._steps) - 1)

    def _raise_limit(
        self, sample: Sample, elapsed: float, needed: float, *, stalled: bool, late: bool
    ) -> GoalDecision:
        before = self.downtime_limit
        if needed <= self.goal.downtime:
            suffice = [
                index for index, step in enumerate(self._steps) if step >= needed * _MARGIN
            ] or [len(self._steps) - 1]
            self._step = max(self._step + 1, suffice[0])
        elif stalled or late:
            self._step = len(self._steps) - 1
        else:
            self._step = max(self._step + 1, self._step_due(elapsed))
        if stalled:
            reason = f"{self._without_progress} passes in a row had no less to send"
        elif late:
            reason = self._why_late(sample, elapsed)
        else:
            reason = f"{elapsed / self.goal.within:.0%} of the time is over"
        return self._limit(sample, before, reason)

    def _limit(self, sample: Sample, before: float, reason: str) -> GoalDecision:
        limit = self.downtime_limit
        return self._decision(
            sample,
            GoalAction.LIMIT,
            f"downtime limit {before * 1000:.0f} to {limit * 1000:.0f} ms",
            reason,
            {"downtime-limit": milliseconds(limit)},
        )

    def _why_stalled(self, sample: Sample, needed: float) -> str:
        reason = f"{self._without_progress} passes in a row had no less to send: "
        if sample.dirty_rate >= self._bandwidth:
            return reason + "the guest dirties memory as fast as it is sent, or faster"
        return (
            f"{reason}what it dirties again and again takes {needed * 1000:,.0f} ms to send, and "
            f"{self.goal.downtime * 1000:,.0f} ms are the goal"
        )

    def _why_late(self, sample: Sample, elapsed: float) -> str:
        needed = self._seconds_needed(sample)
        assert needed is not None
        if needed == math.inf:
            return "the latest passes had no less to send, one after the other"
        return (
            f"at this pace it takes {needed:,.1f} s more, and {self.goal.within - elapsed:,.1f} s "
            "are left"
        )

    def _in_first_pass(self, sample: Sample, elapsed: float) -> list[GoalDecision]:
        """Tell of a first pass that takes too long; zero pages may yet make it shorter."""
        if self._missed or self._first is None or elapsed < self.goal.within * _FIRST_PASS_SHARE:
            return []
        seconds = sample.seconds - self._first.seconds
        sent = self._first.remaining - sample.remaining
        if sent <= 0 or seconds <= 0:
            return []
        needs = sample.remaining / (sent / seconds)
        if elapsed + needs <= self.goal.within * _MARGIN:
            return []
        return self._miss(
            sample, f"the first pass alone takes {elapsed + needs:,.0f} s at this pace"
        )

    def _switch_in_time(self, sample: Sample, elapsed: float, needed: float) -> list[GoalDecision]:
        """Switch to postcopy while there is time to send the rest."""
        if self.goal.then != "postcopy" or needed <= self.goal.downtime:
            return []
        left = self.goal.within - elapsed
        if needed * _SWITCH_MARGIN < left:
            return []
        return self._then(sample, f"{left:,.1f} s are left, and the rest takes {needed:,.1f} s")

    def _time_is_over(self, sample: Sample) -> list[GoalDecision]:
        reason = f"it did not converge within {self.goal.within:g} s"
        if self.goal.then == "postcopy":
            return self._then(sample, reason)
        if self.goal.then != "wait":
            return self._cancel(sample, reason)
        made = self._miss(sample, reason)
        if self._step < len(self._steps) - 1:
            before, self._step = self.downtime_limit, len(self._steps) - 1
            made.append(self._limit(sample, before, reason))
        return made

    def _then(self, sample: Sample, why: str) -> list[GoalDecision]:
        """What is to be done when downtime does not suffice."""
        if self.goal.then == "wait":
            return self._miss(sample, why)
        if self.goal.then == "cancel":
            return self._cancel(sample, why)
        if self.goal.then == "postcopy":
            self._done = True
            return [self._decision(sample, GoalAction.POSTCOPY, "switch to postcopy", why)]
        assert self._throttle is not None
        if self._level is None:
            left = self.goal.within - self._elapsed(sample)
            step = self._throttle.first(self._bandwidth, left)
        else:
            more = self._throttle.more(self._level, sample.throttle)
            if more is None and not self._at_most:
                self._at_most = True  # the last step has as long again to take hold
                return []
            if more is None:
                return self._cancel(sample, f"the guest cannot be slowed down further, and {why}")
            step = more
        self._level = step.level
        if not step.parameters:
            return []
        return [self._decision(sample, GoalAction.THROTTLE, step.what, why, step.parameters)]

    def _miss(self, sample: Sample, why: str) -> list[GoalDecision]:
        if self._missed:
            return []
        self._missed = True
        return [self._decision(sample, GoalAction.MISS, "it will not keep to the goal", why)]

    def _cancel(self, sample: Sample, why: str) -> list[GoalDecision]:
        self._done = True
        return [self._decision(sample, GoalAction.CANCEL, "cancel", why)]

    def _decision(
        self,
        sample: Sample,
        action: GoalAction,
        what: str,
        reason: str,
        parameters: dict[str, object] | None = None,
    ) -> GoalDecision:
        return GoalDecision(
            sample.seconds,
            action,
            what,
            reason,
            self._figures(sample),
            self.downtime_limit,
            parameters or {},
        )


_FATAL: Final = (GoalAction.MISS, GoalAction.POSTCOPY, GoalAction.CANCEL)
