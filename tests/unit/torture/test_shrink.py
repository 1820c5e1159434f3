"""Shrinking: to the steps that matter, in spite of a failure that is rare."""

from __future__ import annotations

from itertools import count, islice

from qemu_ring.torture import Only
from qemu_ring.torture.generate import programs
from qemu_ring.torture.model import Features, program_of
from qemu_ring.torture.shrink import shrink
from qemu_ring.torture.steps import (
    Begin,
    Complete,
    Cycle,
    Migrate,
    MigrationForm,
    Plug,
    Policy,
    Program,
    Reset,
    Write,
)

STOCK = Features(multifd=True)
WIDE = MigrationForm(channel="unix", multifd=3, max_bandwidth=30)


def lost(program: Program) -> int | None:
    """The step at which a page is lost: removed in a migration, after a write in it."""
    begun = written = removed = False
    for index, step in enumerate(program):
        if isinstance(step, Begin):
            begun, written, removed = True, False, False
        written |= begun and isinstance(step, Write) and step.pattern == "once"
        removed |= written and isinstance(step, Cycle) and step.times >= 8
        if isinstance(step, Complete) and removed:
            return index
    return None


async def shrunk(program: Program, *, every: int = 1) -> tuple[Program, int]:
    """What is left of it, and how often a candidate was tried; it fails each so many times."""
    plays = count(1)

    async def fails(candidate: Program) -> Program | None:
        found = lost(candidate)
        for _ in range(2 * every):
            if found is not None and next(plays) % every == 0:
                return candidate[: found + 1]
        return None

    return await shrink(program, fails, STOCK, seconds=60), next(plays)


async def test_to_the_steps_that_matter() -> None:
    steps: Program = (
        *(Plug(), Reset(), Migrate(), Write(block="ballast"), Begin(plan=WIDE, quiet=False)),
        *(Reset(), Write(pages_per_second=3000.0), Plug(), Cycle(slots=("slot",), times=32)),
        *(Reset(), Complete(stopped=False)),
    )
    program = program_of(steps, STOCK)
    left = (Begin(), Write(), Cycle(times=32), Complete())
    for every in (1, 3):
        found, plays = await shrunk(program, every=every)
        assert found == left
        assert plays < 60 * every


async def test_of_programs_as_they_are_made() -> None:
    failing = (one for one in programs(STOCK, Only.ALL, 1) if lost(one) is not None)
    for program in islice(failing, 3):
        index = lost(program)
        assert index is not None
        found, _ = await shrunk(program[: index + 1])
        assert [step.do for step in found] == ["begin", "write", "cycle", "complete"]


async def test_what_does_not_fail_again_stays() -> None:
    async def never(_: Program) -> Program | None:
        return None

    program = (Begin(), Cycle(), Complete())
    assert await shrink(program, never, STOCK, seconds=60) == program


async def test_no_longer_than_it_may() -> None:
    async def always(_: Program) -> Program | None:
        raise AssertionError("not to be tried")

    program = (Begin(), Cycle(), Complete())
    assert await shrink(program, always, STOCK, seconds=0) == program


def test_policy_steps_are_left_out_where_there_are_none() -> None:
    assert program_of((Policy(), Migrate()), STOCK) == (Migrate(),)
