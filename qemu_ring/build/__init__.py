"""Source to patched, configured, compiled, cached QEMU."""

from qemu_ring.build.errors import BuildError
from qemu_ring.build.options import BuildOptions, BuiltQemu, Manifest, Progress
from qemu_ring.build.patches import PARTS
from qemu_ring.build.run import build_qemu, built_binary

__all__ = [
    "PARTS",
    "BuildError",
    "BuildOptions",
    "BuiltQemu",
    "Manifest",
    "Progress",
    "build_qemu",
    "built_binary",
]
