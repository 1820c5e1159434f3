"""Does this QEMU on this host lose dirty bits when memory slots go away?"""

from qemu_ring.prove.options import Control, ProveOptions, Writer
from qemu_ring.prove.result import ProveProgress, ProveResult, ReAdd, Round, ShapeTotal
from qemu_ring.prove.run import prove
from qemu_ring.prove.verdict import ProveVerdict

__all__ = [
    "Control",
    "ProveOptions",
    "ProveProgress",
    "ProveResult",
    "ProveVerdict",
    "ReAdd",
    "Round",
    "ShapeTotal",
    "Writer",
    "prove",
]
