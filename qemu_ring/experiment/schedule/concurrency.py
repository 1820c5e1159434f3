"""How many runs go on at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Concurrency"]


class Concurrency:
    """Counts things that go on, for each of them."""

    def __init__(self) -> None:
        self._most: dict[object, int] = {}

    @contextmanager
    def one(self) -> Iterator[Callable[[], int]]:
        """One of them, while the context is open; what it gives tells the most so far, with it."""
        mine = object()
        self._most[mine] = 0
        for each, most in self._most.items():
            self._most[each] = max(most, len(self._most))
        found = self._most[mine]

        def told() -> int:
            return self._most.get(mine, found)

        try:
            yield told
        finally:
            found = self._most.pop(mine)
