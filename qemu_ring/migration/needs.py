"""What of a plan has a meaning only with something else.

A plan cannot have the one without the other. Options and keys can: each stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from qemu_ring.migration.errors import PlanError

__all__ = ["POSTCOPY", "require_needed"]

POSTCOPY: Final = "kind.postcopy"
"""Stands for the kind postcopy."""

_NEEDED: Final = (
    ("multifd.compression", "multifd.channels"),
    ("multifd.level", "multifd.compression"),
    ("multifd.zero_copy", "multifd.channels"),
    ("mapped_ram.direct_io", "mapped_ram"),
    ("tls.hostname", "tls.source_directory"),
    ("kind.after_passes", POSTCOPY),
    ("kind.preempt", POSTCOPY),
    ("goal.downtime", "goal.within"),
    ("goal.then", "goal.within"),
)


def require_needed(given: Collection[str], name: Callable[[str], str]) -> None:
    """Check that nothing is asked for that nobody would look at.

    Args:
        given: fields of the plan that are asked for, in dots; POSTCOPY if that is the kind.
        name: what the caller's user knows a field by.

    Raises:
        PlanError: a field needs another one.
    """
    for field, needed in _NEEDED:
        if field in given and needed not in given:
            raise PlanError(field, f"needs {name(needed)}")
