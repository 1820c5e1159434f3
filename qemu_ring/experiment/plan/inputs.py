"""Files that runs are made with: each cell's QEMU, its guest's kernel and firmware.

Their digests are noted with the plan, for runs with other files would not compare.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from qemu_ring.experiment.plan.cells import Cell

__all__ = ["changed_file", "file_sha256", "input_digests", "qemu_changed"]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hex; read again only when it has changed.

    Raises:
        OSError: it cannot be read.
    """
    told = os.stat(path)  # noqa: PTH116 - a str serves as well
    return _sha256(os.fspath(path), told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256(path: str, *_: int) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def input_digests(cells: Iterable[Cell]) -> dict[str, str]:
    """SHA-256 of each file that the cells name, by its path; without those not to be read.

    Disks are left out: guests write to them.
    """
    found: dict[str, str] = {}
    for path in dict.fromkeys(path for cell in cells for path in _paths(cell.specification)):
        try:
            found[path] = file_sha256(path)
        except OSError:
            continue  # the run that needs it tells
    return found


def changed_file(cells: Iterable[Cell], noted: Mapping[str, str]) -> str | None:
    """What is wrong with the first file that is not as it was noted; None if all are.

    Args:
        cells: that name the files.
        noted: what `input_digests` told, or none of an earlier version.
    """
    for path in dict.fromkeys(path for cell in cells for path in _paths(cell.specification)):
        if path not in noted:
            continue
        why = _changed(path, noted[path])
        if why is not None:
            return why
    return None


def qemu_changed(qemu: Path, sha256: str) -> str | None:
    """The same of the QEMU for cells that name none.

    Args:
        qemu: its path.
        sha256: as the results note it.
    """
    return _changed(str(qemu), sha256)


def _changed(path: str, sha256: str) -> str | None:
    try:
        same = file_sha256(path) == sha256
    except OSError as error:
        return f"{path} cannot be read any more: {error.strerror}"
    return None if same else f"{path} is not the file that the results were begun with"


def _paths(specification: Mapping[str, Any]) -> Iterator[str]:
    """Absolute paths of the files that a cell names."""
    guest = specification["guest"]
    linux = guest.get("linux") or {}
    named = [
        specification.get("qemu"),
        guest.get("firmware"),
        linux.get("kernel"),
        linux.get("initrd"),
        *(part.get("file") for part in (guest.get("fw-cfg") or {}).values()),
    ]
    directory = Path(specification.get("directory", ".")).absolute()
    for name in named:
        if name is not None:
            yield str(Path(directory, name))
