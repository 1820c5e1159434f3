"""Standard streams that cannot end a command by surprise.

An answer that cannot be written is an error of its own, whatever wrote it: libraries make an
exit status 1 of it, which would mean that the answer is bad. A remark that cannot be written
is nothing. A character that a terminal has not is escaped, and a name that is no text keeps its
bytes: neither is an error.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from qemu_ring.errors import ExitStatus, QemuRingError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["OutputError", "OutputGoneError", "guard_streams"]


_ANY_TEXT = "qemu-ring"
"""The name of our way to write what a charset has not."""


class OutputError(QemuRingError):
    """The answer could not be written to standard output."""


class OutputGoneError(OutputError):
    """Nobody reads standard output any more, which is no failure: `| head` does it."""

    exit_status = ExitStatus.OUTPUT_GONE


def guard_streams() -> None:
    """Put guarded streams in the place of the process's own; ones of a test stay."""
    codecs.register_error(_ANY_TEXT, _written_anyhow)
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        _open(fd, flags)  # standard output so that writing to it fails
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(_Answer(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(_Remarks(2, "w", closefd=False), sys.stderr, line_buffering=True)


def _open(fd: int, flags: int) -> None:
    """Have a descriptor be open, so that none opened later gets its number."""
    try:
        os.fstat(fd)
    except OSError:
        opened = os.open(os.devnull, flags)
        if opened != fd:
            os.dup2(opened, fd)
            os.close(opened)


class _Answer(io.FileIO):
    """Tells once that it cannot be written to; from then on what is written is lost."""

    lost = False

    def write(self, data: Buffer, /) -> int:
        if not self.lost:
            try:
                return super().write(data)
            except OSError as error:
                self.lost = True
                raise self._error(error) from error
        return memoryview(data).nbytes

    def _error(self, error: OSError) -> OutputError:
        if error.errno == errno.EPIPE:
            return OutputGoneError("nobody reads standard output any more")
        return OutputError(
            f"standard output: {error.strerror}", hint="the answer is lost: run it again"
        )


class _Remarks(io.FileIO):
    """What cannot be written to it is lost."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _written_anyhow(error: UnicodeError) -> tuple[bytes, int]:
    """Write what a charset has not: bytes of a file's name as they are, characters escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return b"".join(map(_bytes_of, text)), error.end


def _bytes_of(character: str) -> bytes:
    try:
        return character.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        return character.encode("ascii", "backslashreplace")


def _stream(
    raw: io.FileIO, like: io.TextIOBase | None, *, line_buffering: bool = False
) -> io.TextIOWrapper:
    known = like if isinstance(like, io.TextIOWrapper) else None
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=known.encoding if known else "utf-8",
        errors=_ANY_TEXT,
        line_buffering=known.line_buffering if known else line_buffering,
        write_through=known.write_through if known else False,
    )
