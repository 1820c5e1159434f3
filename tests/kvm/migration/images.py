"""Disk images, and the options to use them."""

from __future__ import annotations

import struct
from pathlib import Path

__all__ = ["disk"]

MIB = 1 << 20


def _qcow2() -> bytes:
    """An empty image of 1 MiB: header, table, and the counts of the clusters that hold these."""
    cluster = 1 << 16
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, MIB, 0, 1, cluster, 2 * cluster, 1, 0, 0
    )
    counts = struct.pack(">4H", 1, 1, 1, 1)
    parts = (header, b"", struct.pack(">Q", 3 * cluster), counts)
    return b"".join(part.ljust(cluster, b"\0") for part in parts)


def disk(folder: Path, image: str, *, locking: bool = True) -> tuple[str, ...]:
    """Options for a disk of this format, made there."""
    path = folder / f"disk.{image}"
    path.write_bytes(bytes(MIB) if image == "raw" else _qcow2())
    lock = "on" if locking else "off"
    return ("-drive", f"if=ide,id=disk,format={image},file={path},file.locking={lock}")
