"""The one error hierarchy of this package.

::

    QemuRingError            exit status 4: a run failed or timed out
     +-- UsageError          exit status 2: the caller asked for something wrong
     +-- HostError           exit status 3: this host cannot do it
     +-- QemuUnsuitableError exit status 3: this QEMU cannot do it
     +-- QmpError            exit status 4: see qemu_ring.qmp.errors
     +-- MachineError        exit status 4: see qemu_ring.machine
     +-- DeadlineError       exit status 4: a wait passed its deadline

Every message is one line that names the cause; `hint` is the next step.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "DeadlineError",
    "ExitStatus",
    "HostError",
    "QemuRingError",
    "QemuUnsuitableError",
    "UsageError",
]


class ExitStatus(IntEnum):
    """What `qemu-ring` exits with."""

    GOOD = 0
    """Done, and the answer is good."""
    BAD = 1
    """Done, and the answer is bad: stale pages were found."""
    USAGE = 2
    """Usage or configuration error; nothing was started."""
    HOST = 3
    """This host, or this QEMU on it, cannot do what was asked."""
    FAILED = 4
    """A run failed or timed out."""
    INTERRUPTED = 130
    """Ended by Ctrl-C (SIGINT); everything started was stopped."""
    OUTPUT_GONE = 141
    """Whoever read standard output has gone (SIGPIPE); everything started was stopped."""
    TERMINATED = 143
    """Ended by SIGTERM; everything started was stopped."""


class QemuRingError(Exception):
    """Base of all errors that this package raises on purpose.

    Args:
        message: one line, the cause.
        hint: one line, what to do next; empty where there is nothing to say.
    """

    exit_status: ExitStatus = ExitStatus.FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(QemuRingError):
    """The caller asked for something that cannot be right, on any host."""

    exit_status = ExitStatus.USAGE


class HostError(QemuRingError):
    """This host cannot do what was asked: no KVM, no ring, no memory."""

    exit_status = ExitStatus.HOST


class QemuUnsuitableError(QemuRingError):
    """This QEMU binary cannot do what was asked: no KVM, too old, a device missing."""

    exit_status = ExitStatus.HOST


class DeadlineError(QemuRingError):
    """Something awaited did not happen before its deadline."""
