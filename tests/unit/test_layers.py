"""The architecture, checked: imports go one way, and no machine's paths."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Modules that break the rules in pyproject.toml, and what import-linter says then.
VIOLATIONS = {
    "machine/a.py": ("import qemu_ring.cli.main", "qemu_ring.machine.a -> qemu_ring.cli.main"),
    "machine/b.py": ("from ..dirty import tracking", "machine.b -> qemu_ring.dirty"),
    "qmp/c.py": ("def f():\n    from qemu_ring.verify import pages", "qmp.c -> qemu_ring.verify"),
    "build/d.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import qemu_ring.migration",
        "qemu_ring.build.d -> qemu_ring.migration",
    ),
    "sizes.py": ("import qemu_ring.qmp", "qemu_ring.sizes -> qemu_ring.qmp"),
}


def check_imports(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the rules in a directory's pyproject.toml."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "pyproject.toml"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_imports_go_one_way() -> None:
    done = check_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, beside the rules."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "qemu_ring", tmp_path / "qemu_ring", ignore=ignored))


def test_violations_are_found(package: Path) -> None:
    for name, (source, _) in VIOLATIONS.items():
        with (package / name).open("a") as file:
            file.write(f"\n{source}\n")
    done = check_imports(package.parent)
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert [words for _, words in VIOLATIONS.values() if words not in said] == []


def test_unknown_layer_is_found(package: Path) -> None:
    (package / "unheard_of").mkdir()
    (package / "unheard_of/__init__.py").touch()
    done = check_imports(package.parent)
    assert done.returncode == 1
    assert "unheard_of" in done.stdout


def test_no_class_name_is_defined_twice() -> None:
    """A reader must not have to look up which of two is meant."""
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "qemu_ring").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


# Absolute paths of some one's machine. Not preceded by what would make them part of a longer
# path, a URL or an expression such as "$dir/work/".
MACHINE_PATH = re.compile(rb"(?<![\w.})\]*-])/(?:work|root|home/\w+|Users/\w+)/|bash_[j]obs")


@pytest.mark.parametrize(
    ("text", "is_machine_path"),
    [
        (b"cd /" + b"work/main", True),
        (b'Path("/' + b'home/someone/src")', True),
        (b"/tmp/bash_" + b"jobs.0/1", True),
        (b"https://example.org/work/", False),
        (b"${build}/root/init", False),
        (b"the work/ directory, /rootfs/ and /home", False),
    ],
)
def test_machine_path_pattern(text: bytes, is_machine_path: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_machine_path


def test_no_machine_paths_in_tracked_files() -> None:
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, timeout=30
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = []
    for name in listing.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file():
            lines = path.read_bytes().splitlines()
            found += [f"{name}:{n}" for n, line in enumerate(lines, 1) if MACHINE_PATH.search(line)]
    assert found == []
