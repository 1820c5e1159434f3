"""Which cells no run of could succeed, on this host with the QEMU at hand: told before any starts.

What a run finds out for itself is not repeated here: whether there is memory enough, say.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from qemu_ring.dirty import Tracking
from qemu_ring.errors import HostError, QemuRingError
from qemu_ring.experiment.plan.cells import Cell
from qemu_ring.experiment.plan.migrations import migration_plan
from qemu_ring.experiment.plan.schema import CellPart
from qemu_ring.guestfile.start import require_accelerator
from qemu_ring.machine import KvmCapabilities, probe_kvm, probe_qemu, probe_schema
from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration.engine.side import require_plan

__all__ = ["require_suitable", "unsuitable_cells", "unsuitable_words"]


async def unsuitable_cells(cells: Iterable[Cell], qemu: Path | None) -> dict[str, QemuRingError]:
    """Why cells cannot be run here, by their ids; cells that can are not in it.

    Args:
        cells: of an experiment.
        qemu: for cells that name none.
    """
    host = _Host()
    known: dict[tuple[object, ...], QemuRingError | None] = {}
    found = {}
    for cell in cells:
        own = cell.specification.get("qemu")
        binary = qemu if own is None else Path(own)
        if binary is None:
            continue
        demands = (binary, *_demands(cell))
        if demands not in known:
            known[demands] = await host.refusal(cell, binary)
        refusal = known[demands]
        if refusal is not None:
            found[cell.id] = refusal
    return found


def unsuitable_words(cells: Collection[Cell], found: Mapping[str, QemuRingError]) -> list[str]:
    """The same as lines: how many cells, and why; the most frequent reason first."""
    reasons = Counter(str(found[cell.id]) for cell in cells if cell.id in found)
    many = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
    return [f"{count} of {many} cannot be run: {why}" for why, count in reasons.most_common()]


def require_suitable(cells: Collection[Cell], found: Mapping[str, QemuRingError]) -> None:
    """Check that there is a cell that can be run.

    Raises:
        QemuRingError: there is none; with the exit status for what the host cannot do.
    """
    if any(cell.id not in found for cell in cells):
        return
    words = unsuitable_words(cells, found)
    more = f" (and {len(words) - 1} more reasons)" if len(words) > 1 else ""
    error = HostError(words[0] + more)
    error.exit_status = found[next(iter(cells)).id].exit_status
    raise error


def _demands(cell: Cell) -> tuple[object, ...]:
    """What of a cell decides whether a QEMU can do it; many cells have the same."""
    of = cell.parameters
    migration: Mapping[str, Any] = cell.specification["migration"]
    return (
        *(of.get(key) for key in ("accelerator", "tracking", "policy", "channel")),
        *(_kind(value) for value in migration.values() if not isinstance(value, Mapping)),
    )


def _kind(value: object) -> object:
    """A number as the one that it is set at all: how much is no matter of what QEMU can do."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value > 0
    return value


class _Host:
    """This host's KVM, asked once."""

    def __init__(self) -> None:
        self._kvm: KvmCapabilities | HostError | None = None

    async def refusal(self, cell: Cell, binary: Path) -> QemuRingError | None:
        """Why one cell cannot be run with one QEMU."""
        try:
            await self._require(cell, binary)
        except QemuRingError as error:
            return error
        return None

    async def _require(self, cell: Cell, binary: Path) -> None:
        qemu = await probe_qemu(binary)
        if cell.parameters["accelerator"] == "kvm":
            guest = cell.specification["guest"]
            policy = guest.get("flush-policy")
            require_accelerator(
                await self._capabilities(),
                qemu,
                Tracking.parse(str(cell.parameters["tracking"])),
                None if policy is None else FlushPolicy(policy),
            )
        parts = {key: cell.specification.get(key) for key in ("migration", "network")}
        plan = migration_plan(CellPart.model_validate(parts))
        require_plan(plan, await probe_schema(binary), f"{binary} ({qemu.version})")

    async def _capabilities(self) -> KvmCapabilities:
        if self._kvm is None:
            try:
                self._kvm = await asyncio.to_thread(probe_kvm)
            except HostError as error:
                self._kvm = error
        if isinstance(self._kvm, HostError):
            raise self._kvm
        return self._kvm
