"""Work in a process of its own, whose memory is given back when it is done."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from qemu_ring.errors import QemuRingError

__all__ = ["done_apart"]

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # source: linux/prctl.h


def done_apart(work: Callable[[], T]) -> T:
    """Do it in a child, which ends with this process; here, if there are other threads.

    Args:
        work: what it returns, or raises, comes back through a pipe.

    Raises:
        QemuRingError: the child was killed.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:  # which a fork would leave in the middle
        return work()
    sys.stdout.flush()
    sys.stderr.flush()
    ours, reader_writer = os.getpid(), os.pipe()
    child = os.fork()
    if child == 0:
        _be_child(ours, *reader_writer, work)
    reader, writer = reader_writer
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as file:
            text = file.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    if status:
        how = os.waitstatus_to_exitcode(status)
        raise QemuRingError(
            f"the process that was to make it has ended: {how}", hint="see that memory suffices"
        )
    result, error = pickle.loads(text)  # noqa: S301 - our own child's
    if error is not None:
        raise error
    found: T = result
    return found


def _be_child(parent: int, reader: int, writer: int, work: Callable[[], object]) -> None:
    """Do it, tell what came of it, and end."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(reader)
        if os.getppid() != parent:
            return
        answer: tuple[object, Exception | None]
        try:
            answer = work(), None
        except Exception as error:  # noqa: BLE001 - raised again by the parent
            answer = None, error
        with os.fdopen(writer, "wb") as file:
            pickle.dump(answer, file)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)
