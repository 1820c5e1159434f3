"""The built firmware image, and how it is built."""

from __future__ import annotations

import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Final

from qemu_ring.errors import QemuRingError

__all__ = ["IMAGE_SIZE", "build_image", "image_bytes", "source_text"]

IMAGE_SIZE: Final = 65536
"""Bytes of the image: what `-bios` maps below 4 GiB and below 1 MiB alike."""


def image_bytes() -> bytes:
    """The image that this package ships."""
    return files(__package__).joinpath("workload.bin").read_bytes()


def source_text() -> str:
    """The image's source, for the GNU assembler."""
    return files(__package__).joinpath("workload.S").read_text(encoding="ascii")


def build_image(assembler: str = "as", objcopy: str = "objcopy") -> bytes:
    """Build the image from its source with binutils.

    Raises:
        QemuRingError: a tool is missing or failed; its message is kept.
    """
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as folder:
        source, built, image = (Path(folder, name) for name in ("w.S", "w.o", "w.bin"))
        source.write_text(source_text(), encoding="ascii")
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
