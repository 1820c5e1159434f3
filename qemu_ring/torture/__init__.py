"""Random sequences of what must lose no page: memslots, resets, migrations, cancels."""

from qemu_ring.torture.finding import Finding, FindingKind
from qemu_ring.torture.options import Only, TortureOptions
from qemu_ring.torture.reproducer import Reproducer
from qemu_ring.torture.result import ReplayResult, TortureProgress, TortureResult
from qemu_ring.torture.run import replay, torture

__all__ = [
    "Finding",
    "FindingKind",
    "Only",
    "ReplayResult",
    "Reproducer",
    "TortureOptions",
    "TortureProgress",
    "TortureResult",
    "replay",
    "torture",
]
