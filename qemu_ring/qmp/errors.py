"""What can go wrong on a QMP monitor.

::

    QemuRingError
     +-- QmpError
          +-- ConnectError         no QMP session came about; nothing is left running
          +-- DisconnectedError    the monitor is gone; a command's outcome may be unknown
          +-- CommandError         QEMU carried the command out and answered with an error
          +-- CommandTimeoutError  no answer before the deadline (also a DeadlineError)
          +-- ProtocolError        what arrived is no QMP, or does not fit the model

`__cause__` of a ConnectError or DisconnectedError tells why: an OSError, an EOFError (the peer
closed the connection), or a ProtocolError (the peer sent garbage).
"""

from __future__ import annotations

from qemu_ring.errors import DeadlineError, QemuRingError

__all__ = [
    "CommandError",
    "CommandTimeoutError",
    "ConnectError",
    "DisconnectedError",
    "ProtocolError",
    "QmpError",
]


class QmpError(QemuRingError):
    """Base of all errors that a QMP monitor causes."""


class ConnectError(QmpError):
    """No QMP session came about: nobody listens, no greeting, no negotiation.

    Its exit status is that of a usage error if there is no such socket at all.
    """


class DisconnectedError(QmpError):
    """The monitor is gone.

    A command that waited for its answer may or may not have been carried out: the message says
    "outcome unknown". A command that was never sent says so.
    """


class CommandError(QmpError):
    """QEMU answered a command with an error.

    Attributes:
        command: the command's QMP name.
        error_class: QEMU's error class, such as ``GenericError`` or ``CommandNotFound``.
        description: QEMU's text, word for word.
    """

    def __init__(self, name: str, command: str, error_class: str, description: str) -> None:
        super().__init__(f"{name}: {command}: {' '.join(description.split())}")
        self.command = command
        self.error_class = error_class
        self.description = description


class CommandTimeoutError(QmpError, DeadlineError):
    """A command was not answered before its deadline, so its outcome is unknown.

    The monitor stays usable: an answer that comes late is dropped.

    Attributes:
        command: the command's QMP name.
        seconds: how long the answer was waited for.
    """

    def __init__(self, name: str, command: str, seconds: float) -> None:
        super().__init__(
            f"{name}: {command} was not answered within {seconds:g} s, outcome unknown",
            hint="QEMU may be stopped or busy: ask again, or allow more time",
        )
        self.command = command
        self.seconds = seconds


class ProtocolError(QmpError):
    """What arrived is no QMP, or is a reply that does not fit its model."""
