"""Does this QEMU on this host lose dirty bits when memory slots go away?"""

from qemu_ring.prove.options import Control, ProveOptions
from qemu_ring.prove.result import Progress, ProveResult, ReAdd, Round, ShapeTotal
from qemu_ring.prove.run import prove
from qemu_ring.prove.verdict import Verdict

__all__ = [
    "Control",
    "Progress",
    "ProveOptions",
    "ProveResult",
    "ReAdd",
    "Round",
    "ShapeTotal",
    "Verdict",
    "prove",
]
