"""Random sequences of what must lose no page: memslots, resets, migrations, cancels."""

from qemu_ring.torture.finding import FindingKind, TortureFinding
from qemu_ring.torture.options import MAX_TORTURED_VCPUS, Only, TortureOptions
from qemu_ring.torture.reproducer import Reproducer
from qemu_ring.torture.result import ReplayResult, TortureProgress, TortureResult
from qemu_ring.torture.run import replay, torture

__all__ = [
    "MAX_TORTURED_VCPUS",
    "FindingKind",
    "Only",
    "ReplayResult",
    "Reproducer",
    "TortureFinding",
    "TortureOptions",
    "TortureProgress",
    "TortureResult",
    "replay",
    "torture",
]
