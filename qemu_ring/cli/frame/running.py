"""Running a coroutine from the command line, so that signals end it in good order."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from qemu_ring.errors import ExitStatus, QemuRingError

__all__ = ["InterruptedRunError", "run"]

T = TypeVar("T")

_STATUS = {signal.SIGINT: ExitStatus.INTERRUPTED, signal.SIGTERM: ExitStatus.TERMINATED}


class InterruptedRunError(QemuRingError):
    """SIGINT or SIGTERM ended the run; everything started was stopped."""

    def __init__(self, number: signal.Signals) -> None:
        # Many commands only talk to QEMUs that others started.
        had_children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
        super().__init__(
            f"ended by {number.name}",
            hint="everything started was stopped" if had_children else "",
        )
        self.exit_status = _STATUS[number]


def run(coroutine: Coroutine[Any, Any, T], *, on_signal: Callable[[], None] = lambda: None) -> T:
    """Run to the end; on SIGINT or SIGTERM cancel, clean up, and say which it was.

    Args:
        coroutine: what to run.
        on_signal: called at once, before what may take some time.

    Raises:
        InterruptedRunError: a signal ended it.
    """
    received: list[signal.Signals] = []

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = loop.create_task(coroutine)

        def end(number: signal.Signals) -> None:
            if not received:
                on_signal()
            received.append(number)
            task.cancel()

        for number in _STATUS:
            loop.add_signal_handler(number, end, number)
        try:
            return await task
        finally:
            for number in _STATUS:
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        if not received:
            raise
        raise InterruptedRunError(received[0]) from None
