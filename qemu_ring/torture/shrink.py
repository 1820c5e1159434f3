"""From a program that failed to the steps that matter."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from qemu_ring.torture.model import Features, program_of
from qemu_ring.torture.steps import Complete, Migrate, Program, plainer

__all__ = ["shrink"]

Fails = Callable[[Program], Awaitable[Program | None]]


async def shrink(program: Program, fails: Fails, features: Features, *, seconds: float) -> Program:
    """Leave out and simplify steps for as long as it fails.

    Args:
        program: one that failed.
        fails: plays one, several times if need be, and returns the part of it that failed: up to
            the step that found something; None if it did not.
        features: what steps can be.
        seconds: begin no other candidate after so long.
    """
    until = time.monotonic() + seconds

    async def tried(candidate: Program) -> Program | None:
        if time.monotonic() > until or not candidate:
            return None
        return await fails(candidate)

    best = program
    for start in _last_migration(program):
        best = await tried(program_of(program[start:], features)) or best
    size = max(1, len(best) // 2)
    while size:
        index = 0
        while index < len(best):
            candidate = program_of(best[:index] + best[index + size :], features)
            shorter = len(candidate) < len(best)
            found = await tried(candidate) if shorter else None
            if found is None:
                index += size
            else:
                best = found
        size //= 2
    index = 0
    while index < len(best):
        for plain in plainer(best[index]):
            candidate = program_of((*best[:index], plain, *best[index + 1 :]), features)
            if len(candidate) == len(best) and (found := await tried(candidate)):
                best = found
                break
        else:
            index += 1
    return best


def _last_migration(program: Program) -> tuple[int, ...]:
    """Where the steps begin that follow the last but one migration, if there is one.

    Most often they are all that matters: each migration that completed has shown that all was well.
    """
    ends = [n for n, step in enumerate(program[:-1]) if isinstance(step, Complete | Migrate)]
    return (ends[-1] + 1,) if ends else ()
