"""How long an answer is waited for: by default, as a monitor says, as a command says."""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING

import pytest

from qemu_ring.qmp import (
    DEFAULT_TIMEOUT,
    CommandTimeoutError,
    Monitor,
    answer_timeout,
    commands,
    set_answer_timeout,
)
from tests.command import COMMAND

if TYPE_CHECKING:
    from tests.unit.qmp.conftest import FakeQemu, Peer


async def silent(peer: Peer) -> None:
    await peer.open()
    await peer.gone()


def test_default_holds_on_a_busy_host() -> None:
    """With a load of five for each CPU commands were seen to take more than 10 s."""
    assert answer_timeout() == DEFAULT_TIMEOUT >= 60


async def test_monitor_says(qemu: FakeQemu) -> None:
    async with await Monitor.connect(await qemu.pair(silent)) as monitor:
        assert monitor.answer_timeout == DEFAULT_TIMEOUT
        monitor.answer_timeout = 0.05
        with pytest.raises(CommandTimeoutError, match=r"within 0\.05 s"):
            await commands.query_status(monitor)
        with pytest.raises(CommandTimeoutError, match=r"within 0\.01 s"):
            await commands.query_status(monitor, timeout=0.01)
        with pytest.raises(CommandTimeoutError, match=r"within 0\.05 s"):
            await monitor.send_fd("name", 0)


async def test_context_says(qemu: FakeQemu) -> None:
    async def impatient() -> float:
        set_answer_timeout(0.05)
        async with await Monitor.connect(await qemu.pair(silent)) as monitor:
            return monitor.answer_timeout

    task = asyncio.create_task(impatient())  # in a context of its own
    assert await task == 0.05
    assert answer_timeout() == DEFAULT_TIMEOUT
    assert contextvars.copy_context().run(answer_timeout) == DEFAULT_TIMEOUT


async def test_commands_take_an_option(qemu: FakeQemu) -> None:
    path = str(await qemu.unix(silent))
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "slots", path, "--answer-timeout", "0.5"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 4
    assert b"was not answered within 0.5 s, outcome unknown" in err
