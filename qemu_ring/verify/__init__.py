"""Is guest memory equal, byte for byte, and which pages are not."""

from qemu_ring.verify._memory import Memory, ProcessMemory
from qemu_ring.verify.comparison import (
    Block,
    Comparison,
    ExcusedPage,
    StalePage,
    compare,
    compare_blocks,
)
from qemu_ring.verify.errors import ComparisonCancelledError, VerifyError

__all__ = [
    "Block",
    "Comparison",
    "ComparisonCancelledError",
    "ExcusedPage",
    "Memory",
    "ProcessMemory",
    "StalePage",
    "VerifyError",
    "compare",
    "compare_blocks",
]
