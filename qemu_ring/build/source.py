"""A QEMU source, tarball or directory: what identifies it, and how it is unpacked."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shlex
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from qemu_ring.errors import BuildError, UsageError
from qemu_ring.programs import Runner

__all__ = ["QemuSource", "file_sha256", "find_source", "in_thread", "qemu_version", "unpack"]

T = TypeVar("T")

_TARBALL = re.compile(r".*\.tar(\.\w+)?|.*\.t[gbx]z2?")
_HINT = "name an unpacked QEMU source or a tarball of one"
# Those that a build as ours needs; a release tarball holds them, a git clone does not.
_SUBPROJECTS = ("keycodemapdb", "berkeley-softfloat-3", "berkeley-testfloat-3")


@dataclass(frozen=True, slots=True)
class QemuSource:
    """A source as it was when looked at.

    Args:
        path: a directory or a tarball.
        sha256: of the tarball, or over the names and contents of the directory's files; hex.
    """

    path: Path
    sha256: str


async def find_source(path: Path) -> QemuSource:
    """Look at a source of the user's.

    Raises:
        UsageError: it is no QEMU source, cannot be read, or lacks subprojects.
    """

    def look(stop: threading.Event) -> QemuSource:
        if path.is_dir():
            qemu_version(path)
            _require_subprojects(path)
            return QemuSource(path, _tree_sha256(path, stop))
        if not path.exists():
            raise UsageError(f"{path} does not exist", hint=_HINT)
        if not _TARBALL.fullmatch(path.name):
            raise UsageError(f"{path} is no tarball, by its name", hint=_HINT)
        return QemuSource(path, file_sha256(path, stop))

    try:
        return await in_thread(look)
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}", hint=_HINT) from error


def qemu_version(tree: Path) -> str:
    """The version of an unpacked source, such as "10.0.13".

    Raises:
        UsageError: it is no QEMU source.
    """
    if (tree / "configure").is_file() and (tree / "VERSION").is_file():
        version = (tree / "VERSION").read_text(errors="replace").strip()
        if re.fullmatch(r"\d+\.\d+\.\d+", version):
            return version
    raise UsageError(f"{tree} is no QEMU source", hint=_HINT)


async def unpack(source: QemuSource, into: Path, runner: Runner) -> Path:
    """Put a copy of a source's files into an empty directory; returns the tree's top.

    A directory is only read. A tarball goes through tar(1), which can be stopped.

    Raises:
        UsageError: it is no QEMU source, or lacks subprojects.
        BuildError: it could not be unpacked, or is not any more what it was when looked at.
    """
    path, tree = source.path, into / "qemu"
    is_tree = path.is_dir()
    found = await in_thread(
        lambda stop: _tree_sha256(path, stop, tree) if is_tree else file_sha256(path, stop)
    )
    if found != source.sha256:
        raise BuildError(f"{path} was changed meanwhile", hint="try again")
    if is_tree:
        return tree
    arguments = ("tar", "--extract", "--no-same-owner", "--file", path.absolute())
    await runner.run(f"unpacking {path.name}", *arguments, cwd=into, timeout=600)
    return _unpacked(into, path)


def _unpacked(into: Path, tarball: Path) -> Path:
    try:
        (inside,) = into.iterdir()
        qemu_version(inside)
    except (ValueError, UsageError):
        raise UsageError(f"{tarball} holds no QEMU source", hint=_HINT) from None
    _require_subprojects(inside, tarball)
    return inside


def _require_subprojects(tree: Path, tarball: Path | None = None) -> None:
    """Check that a source holds what QEMU would else download while it is configured."""
    projects = tree / "subprojects"
    missing = [
        name
        for name in _SUBPROJECTS
        if (projects / f"{name}.wrap").exists() and not (projects / name / "meson.build").exists()
    ]
    if not missing:
        return
    names = " ".join(missing)
    download = f"run: (cd {shlex.quote(str(tree))} && meson subprojects download {names})"
    raise UsageError(
        f"{tarball or tree} lacks the subprojects {', '.join(missing)}, as a git clone does",
        hint="name a release tarball, which holds them" if tarball else download,
    )


async def in_thread(function: Callable[[threading.Event], T]) -> T:
    """Call a function that blocks; when cancelled, set its event and wait for its end."""
    stop = threading.Event()
    future = asyncio.get_running_loop().run_in_executor(None, function, stop)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({future})
        raise


def file_sha256(path: Path, stop: threading.Event) -> str:
    """A file's hash, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while (chunk := file.read(1 << 20)) and not stop.is_set():
            digest.update(chunk)
    return digest.hexdigest()


def _tree_sha256(tree: Path, stop: threading.Event, copy: Path | None = None) -> str:
    """Hash over a directory's files, hex; copies them too if told where to."""
    digest = hashlib.sha256()
    for name in _files(tree):
        if stop.is_set():
            break
        path = tree / name
        mode = path.lstat().st_mode
        is_link = stat.S_ISLNK(mode)
        content = os.fsencode(path.readlink()) if is_link else path.read_bytes()
        kind = "link" if is_link else "program" if mode & stat.S_IXUSR else "file"
        digest.update(f"{kind} {len(content)} ".encode() + os.fsencode(name) + b"\0" + content)
        if copy:
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_link:
                target.symlink_to(os.fsdecode(content))
            else:
                target.write_bytes(content)
                target.chmod(0o755 if kind == "program" else 0o644)
    return digest.hexdigest()


def _files(tree: Path) -> list[str]:
    """Names of a tree's files and links, sorted; without git's and those of a meson build."""
    found = []
    for top, directories, files in os.walk(tree):
        if "meson-private" in directories:
            directories.clear()
            continue
        linked = [name for name in directories if (Path(top) / name).is_symlink()]
        directories[:] = [name for name in directories if name != ".git"]
        for name in (*files, *linked):
            path = os.path.join(top, name)  # noqa: PTH118 - 40,000 times, and Path is slow
            mode = os.lstat(path).st_mode
            if name != ".git" and (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                found.append(os.path.relpath(path, tree))
    return sorted(found)
