"""How long QEMU may take to answer one command, unless somebody says otherwise."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["DEFAULT_TIMEOUT", "answer_timeout", "set_answer_timeout"]

DEFAULT_TIMEOUT = 60.0
"""Seconds. A QEMU that works answers in milliseconds; on a host with many times more to do than
CPUs it was seen to take more than 10 s."""

_seconds: ContextVar[float] = ContextVar("answer timeout", default=DEFAULT_TIMEOUT)


def answer_timeout() -> float:
    """What monitors that are connected from now on are given, in seconds."""
    return _seconds.get()


def set_answer_timeout(seconds: float) -> None:
    """Give monitors that are connected in this context from now on another deadline."""
    _seconds.set(seconds)
