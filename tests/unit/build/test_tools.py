"""What a build needs of the machine is looked for before it starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qemu_ring.build import BuildOptions, build_qemu
from qemu_ring.build.tools import require_dependencies
from qemu_ring.errors import HostError
from tests.unit.build.conftest import write_program


async def test_all_that_is_missing_is_told_at_once(
    options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(HostError) as caught:
        await build_qemu(options)
    assert str(caught.value) == (
        "packages are missing that a build of QEMU needs; as root, run: apt-get install gcc make "
        "pkg-config bison flex patch tar xz-utils util-linux libglib2.0-dev libpixman-1-dev "
        "zlib1g-dev libgnutls28-dev libzstd-dev libc6-dev libfdt-dev"
    )
    assert options.cache is not None
    assert [path.name for path in options.cache.iterdir()] == ["tools"]


@pytest.mark.parametrize(
    ("program", "text", "package"),
    [
        ("pkg-config", 'case "$*" in *glib*) exit 1; esac', "libglib2.0-dev"),
        ("pkg-config", 'case "$*" in *pixman*) exit 1; esac', "libpixman-1-dev"),
        ("pkg-config", 'case "$*" in *gnutls*) exit 1; esac', "libgnutls28-dev"),
        ("pkg-config", 'case "$*" in *zstd*) exit 1; esac', "libzstd-dev"),
        ("cc", 'echo cc 1; case "$*" in *libfdt.h*) exit 1; esac', "libfdt-dev"),
        ("cc", 'echo cc 1; case "$*" in *stdlib.h*) exit 1; esac', "libc6-dev"),
    ],
)
async def test_missing_library(programs: Path, program: str, text: str, package: str) -> None:
    write_program(programs / program, f"#!/bin/sh\n{text}\n")
    with pytest.raises(HostError) as caught:
        await require_dependencies()
    assert caught.value.hint == f"as root, run: apt-get install {package}"


async def test_missing_program(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sh", "patch", "tar", "setpriv", "xz"):
        (programs / name).symlink_to(shutil.which(name) or "/bin/sh")
    (programs / "flex").unlink()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HostError) as caught:
        await require_dependencies()
    assert caught.value.hint == "as root, run: apt-get install flex"


async def test_compiler_that_fails(programs: Path) -> None:
    write_program(programs / "cc", "#!/bin/sh\ntest $# -gt 1\n")
    with pytest.raises(HostError, match="the C compiler cc does not work"):
        await require_dependencies()


async def test_compiler_is_named(programs: Path) -> None:
    assert await require_dependencies() == "stand-in compiler 1.0"
