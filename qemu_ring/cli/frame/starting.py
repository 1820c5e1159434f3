"""Ctrl-C while modules are being imported: a quiet end, for nothing was started yet."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["quiet_interrupts"]


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """Within it SIGINT ends the process at once, with its status and without a word.

    A KeyboardInterrupt could come out of any line of any module, or be swallowed there.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, or somebody else's, as in a test
        yield
        return
    signal.signal(signal.SIGINT, _quit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _quit(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
