"""What can be wrong with a guest's description."""

from __future__ import annotations

from collections.abc import Sequence

from qemu_ring.errors import UsageError

__all__ = ["GuestFileError"]


class GuestFileError(UsageError):
    """A description that cannot be right.

    Args:
        problems: one line each: file, line, field, what is wrong with it.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = tuple(problems)
