"""The one error hierarchy of this package.

::

    QemuRingError            exit status 4: a run failed or timed out
     +-- UsageError          exit status 2: the caller asked for something wrong
     |    +-- FieldError     of a field, which front ends name in words of their own
     +-- HostError           exit status 3: this host cannot do it
     +-- QemuUnsuitableError exit status 3: this QEMU cannot do it
     +-- QmpError            exit status 4: see qemu_ring.qmp.errors
     +-- MachineError        exit status 4: see qemu_ring.machine
     +-- BuildError          exit status 4: a step of a build failed
     +-- DeadlineError       exit status 4: a wait passed its deadline

Every message is one line that names the cause; `hint` is the next step.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "BuildError",
    "DeadlineError",
    "ExitStatus",
    "FieldError",
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

    @classmethod
    def of_another_process(cls, message: str, hint: str, exit_status: int) -> QemuRingError:
        """An error that was raised elsewhere, and came here as words."""
        error = QemuRingError(message, hint=hint)
        error.exit_status = ExitStatus(exit_status)
        return error


class UsageError(QemuRingError):
    """The caller asked for something that cannot be right, on any host."""

    exit_status = ExitStatus.USAGE


class FieldError(UsageError):
    """A value that cannot be right, of a field that callers may have a name of their own for.

    Args:
        field: of the options or the plan, in dots, such as xbzrle.cache_size.
        problem: what is wrong with it, without its name.
        hint: the next step.

    Attributes:
        field, problem: those.
    """

    def __init__(self, field: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{field} {problem}", hint=hint)
        self.field = field
        self.problem = problem

    def renamed(self, name: str) -> UsageError:
        """The same with the name that the caller's user knows the field by."""
        return UsageError(f"{name} {self.problem}", hint=self.hint)


class HostError(QemuRingError):
    """This host cannot do what was asked: no KVM, no ring, no memory."""

    exit_status = ExitStatus.HOST


class QemuUnsuitableError(QemuRingError):
    """This QEMU binary cannot do what was asked: no KVM, too old, a device missing."""

    exit_status = ExitStatus.HOST


class BuildError(QemuRingError):
    """A step of a build failed or took too long; the message holds its last error lines."""


class DeadlineError(QemuRingError):
    """Something awaited did not happen before its deadline."""
