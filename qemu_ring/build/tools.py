"""What a build needs of this machine, and the Python packages that it is given."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from qemu_ring.errors import HostError, UsageError
from qemu_ring.programs import Runner, output_of

__all__ = ["configure_options", "libc", "make_tools", "require_dependencies"]

_PROGRAMS = {
    "cc": "gcc",
    "make": "make",
    "pkg-config": "pkg-config",
    "bison": "bison",
    "flex": "flex",
    "patch": "patch",
    "tar": "tar",
    "xz": "xz-utils",
    "setpriv": "util-linux",
}
_LIBRARIES = {
    "glib-2.0 >= 2.66": "libglib2.0-dev",
    "pixman-1 >= 0.21.8": "libpixman-1-dev",
    "zlib": "zlib1g-dev",
    "gnutls >= 3.6.14": "libgnutls28-dev",
    "libzstd >= 1.4.0": "libzstd-dev",
}
_HEADERS = {"stdlib.h": "libc6-dev", "libfdt.h": "libfdt-dev"}  # libfdt has no .pc file everywhere

# What QEMU's configure takes from its --python: those of which a source tells the version in
# pythondeps.toml, and more. Before QEMU 8.1 there is no such file: configure tells the oldest meson
# that it takes, which is the one that came with it as a git submodule.
_OLDEST_MESON = re.compile(r'version_ge "\$\(meson --version\)" ([\d.]+)')
_PINNED = re.compile(r'^(meson|pycotap) = \{.*\binstalled = "([\w.]+)"', re.MULTILINE)
_PACKAGES = ("ninja", "setuptools", "wheel")


async def require_dependencies() -> str:
    """Check that all is here that a build takes; returns the compiler's name and version.

    Raises:
        HostError: something is missing; the hint is the command that installs it all.
    """
    # Without pkg-config or a compiler nobody can say which libraries are missing. To ask for
    # one that is there does no harm.
    answers = await asyncio.gather(
        output_of("cc", "--version"),
        *(output_of("pkg-config", "--exists", library) for library in _LIBRARIES),
        *(output_of("cc", "-E", "-include", header, os.devnull) for header in _HEADERS),
    )
    missing = [package for name, package in _PROGRAMS.items() if shutil.which(name) is None]
    libraries = (*_LIBRARIES.values(), *_HEADERS.values())
    missing += [name for name, found in zip(libraries, answers[1:], strict=True) if found is None]
    if importlib.util.find_spec("ensurepip") is None:
        missing.append(f"python3.{sys.version_info.minor}-venv")
    if missing:
        raise HostError(
            "packages are missing that a build of QEMU needs",
            hint=f"as root, run: apt-get install {' '.join(missing)}",
        )
    compiler = answers[0]
    if not compiler:
        raise HostError("the C compiler cc does not work", hint="see: cc --version")
    return compiler.splitlines()[0]


def libc() -> str:
    """The C library's name and version; a binary made with a newer one does not start."""
    return os.confstr("CS_GNU_LIBC_VERSION") or ""


async def make_tools(directory: Path, tree: Path, runner: Runner) -> Path:
    """Make the virtual environment that a build runs in, unless it is there.

    Args:
        directory: where all of them live, each under its own name.
        tree: the unpacked QEMU source; the meson is the one that it brings along.
        runner: runs pip, which asks PyPI or what its configuration names.

    Returns:
        Its directory of programs.

    Raises:
        UsageError: the source does not tell which meson it takes.
        BuildError: pip could not install the packages.
    """
    packages = _packages(tree)
    place = directory / _name(directory, packages)
    stamp = place / "complete"
    if not stamp.exists():
        await runner.run(
            "making a Python environment",
            *(sys.executable, "-m", "venv", "--clear", place),
            cwd=directory,
            timeout=120,
        )
        await runner.run(
            "installing meson with pip",
            *(place / "bin/python", "-m", "pip", "install", "--quiet", "--no-input"),
            *("--disable-pip-version-check", "--no-warn-script-location", *packages),
            cwd=directory,
            timeout=600,
        )
        stamp.touch()
    return place / "bin"


def configure_options(tree: Path, tools: Path, options: Iterable[str]) -> list[str]:
    """What to give to a source's configure.

    Args:
        tree: the unpacked QEMU source.
        tools: the directory of programs that `make_tools` returned for it; it has to be the first
            on PATH.
        options: what is wanted of configure; `--disable-download` is left out where it is not
            known, because nothing is downloaded then.
    """
    text = (tree / "configure").read_text(errors="replace")
    if (tree / "pythondeps.toml").is_file():
        environment = f"--python={tools / 'python'}"
    else:  # with --python it would insist on a meson within the source
        environment = f"--meson={tools / 'meson'}"
    unknown = {"--disable-download"} if "--disable-download" not in text else set()
    return [environment, *(option for option in options if option not in unknown)]


def _packages(tree: Path) -> list[str]:
    """What to ask pip for."""
    file = tree / "pythondeps.toml"
    if not file.is_file():
        oldest = _OLDEST_MESON.search((tree / "configure").read_text(errors="replace"))
        if oldest:
            return [f"meson=={oldest[1]}", *_PACKAGES]
    text = file.read_text(errors="replace") if file.is_file() else ""
    section = text.partition("\n[meson]\n")[2].partition("\n[")[0]
    pinned = dict(_PINNED.findall(section))
    if pinned.keys() != {"meson", "pycotap"}:
        raise UsageError(
            "the source's pythondeps.toml does not tell which meson and pycotap it takes",
            hint="name a whole QEMU source",
        )
    return [*(f"{name}=={version}" for name, version in pinned.items()), *_PACKAGES]


def _name(directory: Path, packages: list[str]) -> str:
    """Name of the environment that this interpreter and this list of packages make.

    One that was moved is another: its programs begin with its path.
    """
    paths = [str(directory.resolve()), os.path.realpath(sys.executable)]
    content = "\n".join([*paths, sys.version, *packages])
    return hashlib.sha256(content.encode()).hexdigest()[:20]
