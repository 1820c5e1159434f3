"""A source tree, a compiler and a ninja that stand in for the real ones: a build takes a moment."""

from __future__ import annotations

import asyncio
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_ring.build import BuildOptions
from qemu_ring.build.tools import make_tools
from qemu_ring.programs import Runner

# Waits in the middle of the build if told to, as long as $GATE is not there; a minute at most,
# for a test that fails shall leave nothing for ever.
CONFIGURE = """#!/bin/sh
echo configured "$@" >> "${CONFIGURED:-/dev/null}"
cat > build.sh <<EOF
echo "[1/2] Compiling"
if [ -n "\\$GATE" ]; then
    sh -c 'touch "\\$GATE.waiting"
        for i in \\$(seq 3000); do [ -e "\\$GATE" ] && break; sleep 0.02; done'
fi
. $(dirname "$0")/steps
echo "[2/2] Linking"
EOF
"""
PYTHON_DEPENDENCIES = """# What QEMU takes.
[meson]
meson = { accepted = ">=1.5.0", installed = "1.5.0", canary = "meson" }
pycotap = { accepted = ">=1.1.0", installed = "1.3.1" }

[docs]
sphinx = { accepted = ">=3.4.3", installed = "5.3.0", canary = "sphinx-build" }
"""
STEPS = 'cp "$(dirname "$0")/../source/"*/program qemu-system-x86_64\n'
PROGRAM = """#!/bin/sh
# one
# two
# three
echo "QEMU emulator version 10.0.5, $(echo unpatched)"
# four
# five
# six
"""
PATCH = """What it is for.

--- a/program
+++ b/program
@@ -2,7 +2,7 @@
 # one
 # two
 # three
-echo "QEMU emulator version 10.0.5, $(echo unpatched)"
+echo "QEMU emulator version 10.0.5, $(echo patched)"
 # four
 # five
 # six
"""


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def set_meson(tree: Path, version: str) -> None:
    """Have a source bring along this version of meson."""
    text = PYTHON_DEPENDENCIES.replace('installed = "1.5.0"', f'installed = "{version}"')
    (tree / "pythondeps.toml").write_text(text)


def set_old_meson(tree: Path, version: str) -> None:
    """Have a source tell which meson it takes as it was before QEMU 8.1."""
    (tree / "pythondeps.toml").unlink()
    text = f'# explicit && has meson && version_ge "$(meson --version)" {version}; then\n'
    write_program(tree / "configure", CONFIGURE.rstrip("\n") + f"\n{text}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An unpacked source of QEMU 10.0.5."""
    top = tmp_path / "tree" / "qemu-10.0.5"
    write_program(top / "configure", CONFIGURE)
    write_program(top / "program", PROGRAM)
    (top / "VERSION").write_text("10.0.5\n")
    (top / "pythondeps.toml").write_text(PYTHON_DEPENDENCIES)
    (top / "steps").write_text(STEPS)
    (top / "link").symlink_to("hw/none.c")
    return top


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    """A series of one patch."""
    series = tmp_path / "patches" / "qemu-10.0" / "series"
    series.parent.mkdir(parents=True)
    series.write_text("# quilt's format\n\n0001-say-patched.patch\n")
    (series.parent / "0001-say-patched.patch").write_text(PATCH)
    return tmp_path / "patches"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory before all others on PATH, with what a build needs and may be missing here."""
    for name in ("patch", "setpriv"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    directory = tmp_path / "programs"
    write_program(directory / "cc", "#!/bin/sh\necho stand-in compiler 1.0\n")
    for name in ("make", "pkg-config", "bison", "flex"):
        write_program(directory / name, "#!/bin/sh\n")
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return directory


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Python environments for builds, made once from stand-in packages."""
    wheels = tmp_path_factory.mktemp("wheels")
    for version in ("0.61.5", "1.5.0", "1.9.0"):
        _write_wheel(wheels, "meson", version)
    _write_wheel(wheels, "pycotap", "1.3.1")
    for name in ("ninja", "setuptools", "wheel"):
        _write_wheel(wheels, name, "999")
    directory = tmp_path_factory.mktemp("tools")
    tree = tmp_path_factory.mktemp("tree")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(wheels))
        for meson in ("1.5.0", "1.9.0"):
            set_meson(tree, meson)
            asyncio.run(make_tools(directory, tree, Runner(directory / "log")))
        set_old_meson(tree, "0.61.5")
        asyncio.run(make_tools(directory, tree, Runner(directory / "log")))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def options(tmp_path: Path, tree: Path, patches: Path, programs: Path, tools: Path) -> BuildOptions:
    """A build of `tree` with `patches`, into a cache of its own."""
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "tools").symlink_to(tools)
    return BuildOptions(source=tree, patches=patches, cache=cache)


def _write_wheel(directory: Path, name: str, version: str) -> None:
    """Write a Python package that has a program of its own name, which runs build.sh."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}-{version}.data/scripts/{name}": '#!/bin/sh\nexec sh ./build.sh "$@"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, content in {**files, f"{info}/RECORD": record}.items():
            member = zipfile.ZipInfo(file)
            member.external_attr = 0o100755 << 16
            wheel.writestr(member, content)
