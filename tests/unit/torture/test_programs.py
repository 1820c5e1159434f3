"""Random programs: what can follow what, and that they are what is said of them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from qemu_ring.memslot import FlushPolicy, Shape
from qemu_ring.torture import Only
from qemu_ring.torture.generate import programs
from qemu_ring.torture.model import MAX_PLUGGED, Features, Situation, program_of
from qemu_ring.torture.steps import (
    STEPS,
    Abort,
    Begin,
    Cancel,
    Complete,
    Cycle,
    GuestToggle,
    Kill,
    Limit,
    Migrate,
    MigrationForm,
    Move,
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
from tests.waiting import DEADLINE

STOCK = Features()
PATCHED = Features(
    policies=(FlushPolicy.QUIESCE, FlushPolicy.TOMBSTONE),
    windows=True,
    postcopy=True,
    preempt=True,
    multifd=True,
    compressions=("zlib",),
    xbzrle=True,
    auto_converge=True,
)


@pytest.mark.parametrize("only", list(Only))
@pytest.mark.parametrize("features", [STOCK, PATCHED], ids=["stock", "patched"])
def test_made_ones_can_be_played_and_end_with_what_shows_a_loss(
    features: Features, only: Only
) -> None:
    for program in islice(programs(features, only, 1), 40):
        assert program_of(program, features) == program
        assert any(isinstance(step, Begin | Migrate | Abort) for step in program)
        situation = Situation(features)
        for step in program:
            assert situation.allows(step)
            situation.take(step)
        assert not situation.migrating
        assert not situation.aborted


def test_all_steps_come_and_all_kinds() -> None:
    steps = [step for one in islice(programs(PATCHED, Only.ALL, 3), 120) for step in one]
    count = Counter(step.do for step in steps)
    assert len(count) == len(Step.__args__)
    assert {step.shape for step in steps if isinstance(step, Reshape)} == {*Shape} - {Shape.PCI}
    plans = [step.plan for step in steps if isinstance(step, Begin | Migrate)]
    assert {plan.kind for plan in plans} == {"precopy", "postcopy"}
    assert any(plan.multifd for plan in plans)
    assert any(plan.xbzrle for plan in plans)
    assert any(plan.preempt for plan in plans)
    assert {step.by for step in steps if isinstance(step, Abort)} == {
        *("cancel", "kill", "cancel-sink", "cut-sink")
    }


def test_of_cancels_most_steps_are_aborted_migrations() -> None:
    steps = [step for one in islice(programs(STOCK, Only.CANCELS, 3), 40) for step in one]
    count = Counter(step.do for step in steps)
    assert count["abort"] >= 2 * count["migrate"] > 0
    assert not {"begin", "reset"} & count.keys()


def made_elsewhere(seed: int) -> str:
    """What a process makes that has loaded what the command loads.

    Hypothesis draws numbers that stand in source files of this project, of modules that are loaded:
    here those of tests are, too.
    """
    code = (
        "from itertools import islice\n"
        "from qemu_ring.torture import Only\n"
        "from qemu_ring.torture.generate import programs\n"
        "from qemu_ring.torture.model import Features\n"
        "from qemu_ring.torture.steps import STEPS\n"
        f"for one in islice(programs(Features(), Only.ALL, {seed}), 25):\n"
        "    print(STEPS.dump_json(one).decode())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    return done.stdout


def test_the_same_seed_makes_the_same_programs_in_another_process() -> None:
    programs = made_elsewhere(5)
    assert len([STEPS.validate_json(line) for line in programs.splitlines()]) == 25
    assert made_elsewhere(5) == programs
    assert made_elsewhere(6) != programs


@pytest.mark.parametrize(
    ("before", "refused"),
    [
        ((), (Complete(), Cancel(), Kill(), Limit(), Put())),
        ((Begin(),), (Begin(), Migrate(), Abort(), Plug())),
        ((Take(),), (Take(), Cycle(), Move(), GuestToggle(), Put(slot="helper"))),
        ((GuestToggle(),), (Take(), Cycle(), Move())),
        ((Plug(),) * MAX_PLUGGED, (Plug(),)),
        ((), (Reshape(), Policy(), Write(block="window"), Begin(plan=MigrationForm(xbzrle=True)))),
    ],
)
def test_what_cannot_follow(before: Program, refused: Program) -> None:
    situation = Situation(STOCK)
    for step in before:
        assert situation.allows(step)
        situation.take(step)
    assert [step for step in refused if situation.allows(step)] == []


@pytest.mark.parametrize(
    ("before", "allowed"),
    [
        ((Take(), Put()), Cycle()),
        ((Take(), Reset()), Take()),
        ((GuestToggle(), Write()), Cycle()),
        ((GuestToggle(), Begin()), Cycle()),
        ((Begin(), Kill()), Migrate()),
        ((Begin(), Complete()), Begin()),
    ],
)
def test_what_can_follow_again(before: Program, allowed: Step) -> None:
    assert program_of((*before, allowed), STOCK)[: len(before) + 1] == (*before, allowed)


def test_a_vcpu_that_is_the_only_one_does_not_toggle() -> None:
    assert not Features(vcpus=1).allow(GuestToggle())


@pytest.mark.parametrize(
    ("steps", "program"),
    [
        ((Begin(),), (Begin(), Complete())),
        ((Abort(),), (Abort(), Migrate())),
        ((Begin(), Cancel()), (Begin(), Cancel(), Migrate())),
        ((Begin(), Cancel(), Migrate()), (Begin(), Cancel(), Migrate())),
        ((Complete(), Put(), Write()), (Write(),)),
    ],
)
def test_ends_are_made_and_what_cannot_be_left_out(steps: Program, program: Program) -> None:
    assert program_of(steps, STOCK) == program


@pytest.mark.parametrize(
    "wrong",
    [
        {"multifd": 2},
        {"channel": "unix", "compression": "zlib"},
        {"channel": "unix", "preempt": True},
        {"kind": "postcopy", "preempt": True},
    ],
)
def test_plans_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"is postcopy's|single connection|is multifd's"):
        MigrationForm.model_validate(wrong)
