"""Random sequences of what must lose no page: memslots, resets, migrations, cancels."""

from qemu_ring.torture.finding import Finding, FindingKind
from qemu_ring.torture.options import MAX_TORTURED_VCPUS, Only, TortureOptions
from qemu_ring.torture.reproducer import Reproducer
from qemu_ring.torture.result import ReplayResult, TortureProgress, TortureResult
from qemu_ring.torture.run import replay, torture

__all__ = [
    "MAX_TORTURED_VCPUS",
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
