"""The built firmware images, and how they are built."""

from __future__ import annotations

import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

from qemu_ring.errors import QemuRingError

__all__ = [
    "IMAGES",
    "IMAGE_SIZE",
    "RING0_FIRST",
    "RING0_PAGES",
    "RING0_PASSES",
    "build_image",
    "image_bytes",
    "source_text",
]

IMAGE_SIZE: Final = 65536
"""Bytes of an image: what `-bios` maps below 4 GiB and below 1 MiB alike."""
IMAGES: Final = ("workload", "ring0")
"""The workload, and one that writes to one page after the other in ring 0."""
RING0_PASSES: Final = 0x2000
"""Where ring0 counts its passes over memory: a guest-physical address; u32."""
RING0_FIRST: Final = 1 << 20
"""The first page that ring0 writes to: a guest-physical address."""
RING0_PAGES: Final = 4096
"""How many pages it writes to."""


def image_bytes(name: str = "workload") -> bytes:
    """One of `IMAGES`, as this package ships it."""
    return files(__package__).joinpath(f"{name}.bin").read_bytes()


def source_text(name: str = "workload") -> str:
    """An image's source, for the GNU assembler."""
    return files(__package__).joinpath(f"{name}.S").read_text(encoding="ascii")


def build_image(
    name: str = "workload", *, assembler: str = "as", objcopy: str = "objcopy"
) -> bytes:
    """Build an image from its source with binutils.

    Raises:
        QemuRingError: a tool is missing or failed; its message is kept.
    """
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as folder:
        source, built, image = (Path(folder, name) for name in ("w.S", "w.o", "w.bin"))
        source.write_text(source_text(name), encoding="ascii")
        for command in (
            [assembler, "--64", "--fatal-warnings", "-o", str(built), str(source)],
            [objcopy, "-O", "binary", "-j", ".text", str(built), str(image)],
        ):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            except FileNotFoundError:
                raise QemuRingError(
                    f"{command[0]} is not installed", hint="install it: apt-get install binutils"
                ) from None
            except subprocess.CalledProcessError as error:
                raise QemuRingError(f"{command[0]} failed: {error.stderr.strip()}") from error
        return image.read_bytes()
