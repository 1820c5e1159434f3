"""Random programs, by Hypothesis' stateful machinery: rules, and when each may be chosen.

Hypothesis chooses steps and their values by a model of the guest; the programs are played later.
It cannot watch them: whether a page is lost is a matter of microseconds, and Hypothesis takes a
program that fails once and passes the next time for a mistake of its author's. What shrinks one
that fails is `shrink`, which plays each candidate several times.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import hypothesis
import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from qemu_ring.memslot import Shape, layouts
from qemu_ring.prove.stage import ELSEWHERE, WINDOWS
from qemu_ring.torture.model import Features, Situation, program_of
from qemu_ring.torture.options import Only
from qemu_ring.torture.steps import (
    SLOTS,
    Abort,
    Begin,
    Cancel,
    Complete,
    Cycle,
    GuestToggle,
    Kill,
    Limit,
    MeasureRate,
    Migrate,
    MigrationForm,
    Move,
    Pause,
    Plug,
    Policy,
    Program,
    Put,
    Reset,
    Reshape,
    Step,
    Take,
    Write,
)

__all__ = ["programs"]

_LENGTH: Final = {Only.ALL: 20, Only.CANCELS: 14}
"""Steps that are chosen for a program."""
_AT_A_TIME: Final = 20
_LEAST_KINDS: Final = 3
"""Of steps in a program; Hypothesis begins with the plainest, the same step again and again."""
_Rule = TypeVar("_Rule", bound=Callable[..., Any])
_STEPS_OF: Final[dict[Only, tuple[type[Step], ...]]] = {
    Only.ALL: Step.__args__,
    Only.CANCELS: (Write, Abort),
}
_SHAPES: Final = tuple(shape for shape in Shape if shape is not Shape.PCI)
_RATES: Final = (100_000.0, 20_000.0, 3000.0, None)
_BANDWIDTHS: Final = (None, 400, 100, 30)


def programs(features: Features, only: Only, seed: int) -> Iterator[Program]:
    """Programs without end, each with a migration; the same for the same arguments.

    Making some takes a fraction of a second now and then.
    """
    seeds = random.Random(seed)  # noqa: S311 - nothing here is secret
    seen = set[Program]()  # each time Hypothesis begins with the same plain ones
    while True:
        for program in _some(features, only, seeds.getrandbits(64)):
            if program not in seen:
                seen.add(program)
                yield program


def _some(features: Features, only: Only, seed: int) -> list[Program]:
    made: list[Program] = []
    settings = hypothesis.settings(
        max_examples=_AT_A_TIME,
        stateful_step_count=_LENGTH[only],
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
        deadline=None,
        database=None,
    )
    machine = hypothesis.seed(seed)(_machine(features, only, made))
    run_state_machine_as_test(machine, settings=settings)
    return [
        one
        for one in made
        if any(isinstance(step, Begin | Migrate | Abort) for step in one)
        and len({step.do for step in one}) >= _LEAST_KINDS
    ]


def _plans(features: Features) -> st.SearchStrategy[MigrationForm]:
    """All that this QEMU can do, and that goes together on every QEMU."""
    wide = st.sampled_from(("unix", "tcp"))
    any_channel = st.sampled_from(("fd", "unix", "tcp"))
    precopy: dict[str, Any] = {
        "channel": any_channel,
        "max_bandwidth": st.sampled_from(_BANDWIDTHS),
        "downtime_ms": st.sampled_from((300, 1, 30)),
    }
    kinds = [st.builds(MigrationForm, **precopy)]
    if features.xbzrle:
        kinds.append(st.builds(MigrationForm, **precopy, xbzrle=st.just(True)))
    if features.auto_converge:
        kinds.append(st.builds(MigrationForm, **precopy, auto_converge=st.just(True)))
    if features.multifd:
        several = {**precopy, "channel": wide, "multifd": st.integers(1, 4)}
        compressions = st.sampled_from(("none", *features.compressions))
        kinds.append(st.builds(MigrationForm, **several, compression=compressions))
    if features.postcopy:
        kinds.append(st.builds(MigrationForm, **precopy, kind=st.just("postcopy")))
    if features.preempt:
        preempt = {**precopy, "channel": wide, "preempt": st.just(True)}
        kinds.append(st.builds(MigrationForm, **preempt, kind=st.just("postcopy")))
    return st.one_of(kinds)


def _reshapes() -> st.SearchStrategy[Reshape]:
    def of(shape: Shape) -> st.SearchStrategy[Reshape]:
        length = len(layouts(shape, *WINDOWS, ELSEWHERE))
        return st.builds(
            Reshape,
            shape=st.just(shape),
            times=st.sampled_from((100, 400, 1, 20)),
            pause_us=st.sampled_from((200, 0, 50, 1000)),
            stay=st.integers(0, length - 1),
        )

    return st.sampled_from(_SHAPES).flatmap(of)


def _machine(features: Features, only: Only, made: list[Program]) -> type[RuleBasedStateMachine]:
    plans = _plans(features)
    slots = st.sampled_from(SLOTS)
    # What the vCPUs write as memory goes away, to pages that are clean: a lost one shows.
    quarters = st.sampled_from((0, 1, 2, 3, None))
    rates = st.sampled_from(_RATES[:-1])
    walks = st.one_of(*[st.builds(Write, pages_per_second=rates, quarter=quarters)] * 3, st.none())
    cycles = st.builds(
        Cycle,
        slots=st.sampled_from((SLOTS, SLOTS, ("slot",), ("helper", "slot"))),
        times=st.sampled_from((60, 200, 30, 1)),
        pause_ms=st.sampled_from((0.0, 0.0, 1.0)),
    )
    moves = st.builds(Move, slot=slots, times=st.sampled_from((4, 1)))
    disturbances = st.sampled_from((Pause(), Reset(), Plug(), MeasureRate(), Cancel(), Kill()))
    takes = st.builds(Take, slot=slots)
    toggles = st.builds(GuestToggle, rest_us=st.sampled_from((200, 0, 5000)))
    begins = st.builds(Begin, plan=plans, quiet=st.sampled_from((True, True, True, False)))
    limits = st.builds(
        Limit, max_bandwidth=st.sampled_from((8, 64, 1)), downtime_ms=st.sampled_from((1, 30))
    )
    sinks = ("cancel-sink", "cut-sink") * (2 if only is Only.ALL else 4)
    aborts = st.builds(
        Abort,
        by=st.sampled_from((*sinks, "cancel", "kill")),  # without a destination it is quicker
        after_ms=st.integers(0, 300).map(float),
        after_kib=st.integers(0, 64 << 10),
        max_bandwidth=st.sampled_from(_BANDWIDTHS),
    )
    blocks = ("slot", "window", "ballast") if features.windows else ("slot", "ballast")

    def when(step: Step) -> Callable[[_Rule], _Rule]:
        """Whether a step like this one may be next."""
        return precondition(lambda self: self.may(step))

    class GuestModel(RuleBasedStateMachine):
        """A guest's model; what it goes through becomes a program."""

        def __init__(self) -> None:
            super().__init__()
            self.situation = Situation(features)
            self.steps: list[Step] = []

        def may(self, step: Step) -> bool:
            return type(step) in _STEPS_OF[only] and self.situation.allows(step)

        def is_worth_it(self) -> bool:
            """Whether memory that goes away now can be lost."""
            return self.situation.migrating and only is Only.ALL

        def add(self, step: Step) -> None:
            self.situation.take(step)
            self.steps.append(step)

        def teardown(self) -> None:
            made.append(program_of(self.steps, features))

        @rule(
            step=st.builds(
                Write,
                block=st.sampled_from(blocks),
                pattern=st.sampled_from(("once", "random", "loop", "hot-cold", "idle")),
                pages_per_second=st.sampled_from(_RATES),
                quarter=quarters,
            )
        )
        def write(self, step: Write) -> None:
            self.add(step)

        @precondition(lambda self: self.is_worth_it())
        @rule(walk=walks, step=cycles)
        def cycle(self, walk: Write | None, step: Cycle) -> None:
            if walk is not None:
                self.add(walk)
                for slot in sorted(self.situation.away):
                    self.add(Put(slot=slot))
            if self.may(step):
                self.add(step)

        @rule(step=st.one_of(moves, takes, toggles))
        def take(self, step: Step) -> None:
            if self.may(step):
                self.add(step)

        @precondition(lambda self: any(self.may(Put(slot=slot)) for slot in SLOTS))
        @rule()
        def put(self) -> None:
            for slot in SLOTS:
                if self.may(Put(slot=slot)):
                    self.add(Put(slot=slot))

        @precondition(lambda self: self.is_worth_it() and self.may(Reshape()))
        @rule(walk=walks, step=_reshapes())
        def reshape(self, walk: Write | None, step: Reshape) -> None:
            if walk is not None:
                self.add(walk.model_copy(update={"block": "window"}))
            self.add(step)

        @rule(step=st.one_of(disturbances, limits))
        def disturb(self, step: Step) -> None:
            if self.may(step):
                self.add(step)

        @when(Begin())
        @rule(step=begins)
        def begin(self, step: Begin) -> None:
            self.add(step)

        @when(Complete())
        @rule(step=st.builds(Complete, stopped=st.booleans()))
        def complete(self, step: Complete) -> None:
            self.add(step)

        # Two more, so that most of the steps are what such programs are for.
        @precondition(lambda _: only is Only.CANCELS)
        @rule(step=aborts, other=aborts)
        def abort(self, step: Abort, other: Abort) -> None:
            self.add(step)
            self.add(other)

        @when(Abort())
        @rule(step=st.one_of(aborts, st.builds(Migrate, plan=plans)))
        def whole(self, step: Step) -> None:
            if self.may(step):
                self.add(step)

    if features.policies:

        class GuestModelWithPolicies(GuestModel):
            """The same of a patched QEMU."""

            @precondition(lambda self: self.may(Policy(policy=features.policies[0])))
            @rule(step=st.builds(Policy, policy=st.sampled_from(features.policies)))
            def policy(self, step: Policy) -> None:
                self.add(step)

        return GuestModelWithPolicies
    return GuestModel
