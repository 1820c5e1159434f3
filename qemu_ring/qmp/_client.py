"""qemu.qmp's client, with the few things that `Monitor` needs and the library does not offer."""

from __future__ import annotations

import logging
import os
import re
import secrets
from asyncio.trsock import TransportSocket
from typing import NamedTuple

from qemu.qmp import ConnectError as LibraryConnectError
from qemu.qmp import Message, QMPClient, Runstate
from qemu.qmp.error import ProtocolError as LibraryProtocolError
from qemu.qmp.message import DeserializationError, UnexpectedTypeError
from qemu.qmp.qmp_client import GreetingError, NegotiationError, ServerParseError

from qemu_ring.qmp.errors import ProtocolError

__all__ = ["Cause", "Client", "explain"]

_SHOWN = 80
"""How many bytes of garbage an error message shows."""
_TORN = "in the middle of a message"


class Client(QMPClient):
    """A QMPClient that can be hung up and aborted at once, from anywhere."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.logger.addFilter(_demote)
        self._session = secrets.token_hex(4)

    def hang_up(self) -> None:
        """Begin to disconnect in good order, without waiting. Needs a running session."""
        if self.runstate is Runstate.RUNNING:
            self._schedule_disconnect()

    def abort(self) -> None:
        """Drop the connection with all unsent bytes, so that no wait on it can last."""
        if self._writer is not None:
            self._writer.transport.abort()

    @property
    def transport(self) -> TransportSocket | None:
        """What it is connected by; None while it is not."""
        return None if self._writer is None else self._writer.get_extra_info("socket")

    async def flush(self) -> None:
        """Wait until all that was queued has reached the socket.

        Raises:
            OSError: the connection broke.
        """
        await self._bh_flush_writer()

    async def _readline(self) -> bytes:
        """Read one message: a line, or the lines of one that is pretty-printed (pretty=on)."""
        line = await self._read_line()
        if line.rstrip() != b"{":
            return line
        # QEMU indents all within, and no string in JSON holds the end of a line.
        lines, size = [line], len(line)
        while line.rstrip() != b"}":
            try:
                line = await self._read_line()
            except EOFError:
                raise EOFError(_TORN) from None
            lines.append(line)
            size += len(line)
            if size > self.readbuflen:
                raise ProtocolError(f"a message longer than {self.readbuflen:,} bytes")
        return b"".join(lines)

    async def _read_line(self) -> bytes:
        try:
            line = await super()._readline()
        except ValueError as error:
            raise ProtocolError(f"a line longer than {self.readbuflen:,} bytes") from error
        if not line.endswith(b"\n"):
            # The library would parse the torn line and report bad JSON.
            raise EOFError(_TORN)
        return line

    async def _recv(self) -> Message:
        """Read the next message; before there is a session, the next that belongs to its making.

        QEMU takes a monitor for in use from its last client's negotiation on, and sends events
        before the greeting; it sends them between carrying qmp_capabilities out and answering
        it; and the answer to what an earlier client asked may come to its successor.
        """
        message = await super()._recv()
        while self.runstate is Runstate.CONNECTING and _is_an_aside(message):
            message = await super()._recv()
        return message

    def _get_exec_id(self) -> str:
        # What is answered too late for an earlier connection must fit no command of this one.
        return f"{self._session}#{super()._get_exec_id()}"

    # The library formats every message for its log, indented, even when nobody reads that log.

    def _cb_outbound(self, msg: Message) -> Message:
        if self.logger.isEnabledFor(logging.DEBUG):
            super()._cb_outbound(msg)
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if self.logger.isEnabledFor(logging.DEBUG):
            super()._cb_inbound(msg)
        return msg


def _is_an_aside(message: Message) -> bool:
    """Whether it is an event, or the answer to a command with an id; qmp_capabilities has none."""
    is_answer = "return" in message or "error" in message
    return "event" in message or (is_answer and message.get("id") is not None)


def _demote(record: logging.LogRecord) -> bool:
    """Log what the library finds at DEBUG: all of it reaches the caller as an exception."""
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


class Cause(NamedTuple):
    """Why a connection failed: in words, and as the exception to chain."""

    text: str
    error: BaseException


def explain(error: BaseException) -> Cause:
    """Turn what the library raised on connecting or disconnecting into one line's cause."""
    while isinstance(error, (LibraryConnectError, GreetingError, NegotiationError)):
        if isinstance(error, NegotiationError) and isinstance(error.exc, AssertionError):
            break  # The library asserts that negotiation succeeds.
        error = error.exc
    if isinstance(error, EOFError):
        where = f" {error}" if error.args else ""
        return Cause(f"the peer closed the connection{where}", error)
    if isinstance(error, OSError):
        return Cause(_why(error), error)
    garbage = ProtocolError(f"the peer sent {_describe(error)}")
    garbage.__cause__ = error
    return Cause(garbage.message, garbage)


def _why(error: OSError) -> str:
    """The system's words; asyncio puts an address's tuple there."""
    words = error.strerror or str(error) or type(error).__name__
    if words.startswith("Multiple exceptions"):  # of a name with several addresses
        causes = re.findall(r"\[Errno (\d+)\]", words)
        return ", ".join(dict.fromkeys(os.strerror(int(number)) for number in causes)) or words
    if error.errno is not None and words.startswith("Connect call failed"):
        return os.strerror(error.errno)
    return words


def _describe(error: BaseException) -> str:
    """Say what is wrong with what the peer sent, in one bounded line."""
    if isinstance(error, ProtocolError):
        return error.message
    if isinstance(error, DeserializationError):
        return f"what is no JSON: {error.raw[:_SHOWN]!r}"
    if isinstance(error, UnexpectedTypeError):
        return f"JSON that is no object: {repr(error.value)[:_SHOWN]}"
    if isinstance(error, ServerParseError):
        return f"an error that belongs to no command: {repr(error.msg.get('error'))[:_SHOWN]}"
    if isinstance(error, NegotiationError):
        return "an answer that is no success"
    if isinstance(error, LibraryProtocolError):
        return f"what is no QMP: {error.error_message}"
    detail = " ".join(str(error).split())
    return f"what is no QMP: {type(error).__name__} {detail}".rstrip()[: 2 * _SHOWN]
