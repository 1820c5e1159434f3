"""The start of a successor that is not waited for any more leaves nothing behind."""

from __future__ import annotations

import asyncio
import importlib
from contextlib import suppress
from typing import Any

import pytest

MODULE = importlib.import_module("qemu_ring.migration.cpr")


class FakeMachine:
    closed = False

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("stubborn", [False, True])
async def test_started_machine_is_closed(stubborn: bool) -> None:
    machine, begun = FakeMachine(), asyncio.Event()

    async def start() -> Any:
        begun.set()
        if stubborn:  # it is so far that it does not mind being cancelled
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        return machine

    starting = asyncio.ensure_future(start())
    await begun.wait()
    await MODULE._abandoned(starting)
    assert machine.closed


async def test_error_of_a_start_is_taken_note_of() -> None:
    async def start() -> Any:
        raise ValueError("no")

    starting = asyncio.ensure_future(start())
    await asyncio.sleep(0)
    await MODULE._abandoned(starting)  # else asyncio complains, which is an error here
