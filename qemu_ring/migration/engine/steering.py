"""Carrying out, at the source, what is decided for a migration's goal."""

from __future__ import annotations

from collections.abc import Callable

from qemu_ring.migration.engine.convergence import Convergence
from qemu_ring.migration.engine.side import Side
from qemu_ring.migration.goal import GoalDecision
from qemu_ring.migration.timeline import Sample

__all__ = ["Steering"]


class Steering:
    """Sets what decisions ask for; the rest is for whoever follows the migration.

    Args:
        convergence: decides.
        source: the side that is set.
        on_decision: called with each decision, once its parameters are set.
    """

    def __init__(
        self,
        convergence: Convergence,
        source: Side,
        on_decision: Callable[[GoalDecision], None] | None = None,
    ) -> None:
        self.convergence = convergence
        self._source = source
        self._on_decision = on_decision

    async def steer(self, sample: Sample) -> list[GoalDecision]:
        """Decide by QEMU's figures of a moment, and set parameters.

        Raises:
            UsageError: QEMU refused a value.
            QmpError: it did not answer, or is gone.
        """
        made = self.convergence.observe(sample)
        for decision in made:
            await self._source.set_parameters(decision.parameters)
            if self._on_decision is not None:
                self._on_decision(decision)
        return made
