"""Where builds live: whole ones only, one being made at a time, and nothing left of broken ones.

::

    builds/KEY/     the binary and its manifest; renamed to here when complete
    sources/        Debian's tarballs, and debian-VERSION.json, which tell their hashes
    tools/          Python environments
    and what every cache has: work/, logs/, lock
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qemu_ring.build.options import BuiltQemu, Manifest
from qemu_ring.build.source import QemuSource
from qemu_ring.cache import CacheDirectory

__all__ = ["BINARY", "Cache"]

BINARY = "qemu-system-x86_64"
_MANIFEST = "manifest.json"


class Cache(CacheDirectory):
    """The directory for QEMUs, and for what they are made of."""

    def tools(self) -> Path:
        """Directory for Python environments; it is there."""
        (self.root / "tools").mkdir(exist_ok=True)
        return self.root / "tools"

    def newest(self, suits: Callable[[Manifest], bool]) -> BuiltQemu | None:
        """The newest whole build whose manifest suits."""
        loaded = (self._load(place) for place in (self.root / "builds").glob("*"))
        found = [built for built in loaded if built and suits(built.manifest)]
        return max(found, key=lambda built: built.manifest.built, default=None)

    def _load(self, place: Path) -> BuiltQemu | None:
        path = place / BINARY
        try:
            manifest = Manifest.load((place / _MANIFEST).read_text())
            whole = path.stat().st_size == manifest.size and os.access(path, os.X_OK)
        except (OSError, ValueError):
            return None
        return BuiltQemu(path, manifest, cached=True) if whole else None

    def publish(self, key: str, binary: Path, manifest: Manifest) -> BuiltQemu:
        """Take a binary in from a work directory, at one stroke; the lock is held."""
        made = binary.parent / "result"
        made.mkdir()
        binary.rename(made / BINARY)
        (made / _MANIFEST).write_text(manifest.dump())
        for path in (made / BINARY, made / _MANIFEST, made):  # a power cut makes no half of it
            _sync(path)
        place = self.root / "builds" / key
        place.parent.mkdir(exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)  # not whole, or it would have been found
        made.rename(place)
        return BuiltQemu(place / BINARY, manifest, cached=False)

    def debian_source(self, version: str) -> QemuSource | None:
        """Debian's tarball of a QEMU version as last fetched; it may have been deleted since."""
        try:
            told = json.loads((self.root / "sources" / _note(version)).read_text())
            return QemuSource(self.root / "sources" / str(told["file"]), str(told["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep_debian_source(self, version: str, tarball: Path, sha256: str) -> QemuSource:
        """Take in a tarball from a work directory, and remember it; the lock is held."""
        place = self.root / "sources" / tarball.name
        place.parent.mkdir(exist_ok=True)
        tarball.rename(place)
        note = tarball.with_name(_note(version))
        note.write_text(json.dumps({"file": place.name, "sha256": sha256}))
        note.rename(place.parent / note.name)
        return QemuSource(place, sha256)


def _note(version: str) -> str:
    return f"debian-{version}.json"


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
