"""QemuSource to patched, configured, compiled, cached QEMU."""

from qemu_ring.build.debian import DEFAULT_VERSION, SUITES
from qemu_ring.build.options import BuildOptions, BuildProgress, BuiltQemu, Manifest
from qemu_ring.build.patches import PARTS
from qemu_ring.build.run import build_qemu, built_binary
from qemu_ring.errors import BuildError

__all__ = [
    "DEFAULT_VERSION",
    "PARTS",
    "SUITES",
    "BuildError",
    "BuildOptions",
    "BuildProgress",
    "BuiltQemu",
    "Manifest",
    "build_qemu",
    "built_binary",
]
