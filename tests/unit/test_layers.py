"""The architecture, checked: imports go one way, every directory is a layer, no machine's paths."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "qemu_ring"

# A module may import from its own layer and from those after it.
LAYERS = [
    "cli",
    "report",
    "experiment",
    "torture",
    "prove",
    "migration",
    "guestfile",
    "memslot",
    "dirty",
    "verify",
    "machine",
    "guest",
    "build",
    "qmp",
]
# Single modules below all layers; "" is qemu_ring/__init__.py itself.
FOUNDATION = ["", "errors", "sizes", "_compat", "_settled"]

RANKS = {layer: len(LAYERS) - index for index, layer in enumerate(LAYERS)}
RANKS |= dict.fromkeys(FOUNDATION, 0)


def layer_of(module: str) -> str | None:
    """Name the layer of a dotted module name; None where it is not of this package."""
    first, _, rest = module.partition(".")
    return rest.partition(".")[0] if first == "qemu_ring" else None


def imported_modules(source: str, module: str, *, is_package: bool) -> list[tuple[int, str]]:
    """List (line, dotted name) of each import of this package, wherever in the module it is."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            if base == "qemu_ring":  # what is imported is a layer, or __version__ and its like
                names = ["" if a.name.startswith("__") else f".{a.name}" for a in node.names]
                found += [(node.lineno, base + name) for name in names]
            else:
                found.append((node.lineno, base))
    return [(line, name) for line, name in found if layer_of(name) is not None]


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """List the imports in a module's source that its layer does not allow."""
    own = layer_of(module) or ""
    if own not in RANKS:
        return [f"{module} is in no known layer"]
    bad = []
    for line, name in imported_modules(source, module, is_package=is_package):
        layer = layer_of(name) or ""
        if layer not in RANKS:
            bad.append(f"{module}:{line} imports {name}, which is in no known layer")
        elif RANKS[layer] > RANKS[own]:
            bad.append(f"{module}:{line} imports {name}, which is above it")
    return bad


def test_imports_go_one_way() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(path.read_text(), module, is_package=is_package)
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("qemu_ring.machine.kvm", "from qemu_ring.dirty.mode import Mode"),
        ("qemu_ring.machine.kvm", "import qemu_ring.cli.main"),
        ("qemu_ring.machine.kvm", "from qemu_ring import dirty"),
        ("qemu_ring.machine.kvm", "from ..dirty import mode"),
        ("qemu_ring.machine.kvm", "from .. import dirty"),
        ("qemu_ring.machine.kvm", "def late():\n    from qemu_ring.verify import pages"),
        ("qemu_ring.machine.kvm", "if TYPE_CHECKING:\n    from qemu_ring.migration import Plan"),
        ("qemu_ring.errors", "from qemu_ring.qmp import errors"),
        ("qemu_ring.qmp.client", "from qemu_ring.unheard_of import x"),
        ("qemu_ring.unheard_of", ""),
    ],
)
def test_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


def test_package_may_not_import_upwards_either() -> None:
    assert violations("from ..dirty import mode", "qemu_ring.machine", is_package=True) != []
    assert violations("from .cli import main", "qemu_ring", is_package=True) != []


@pytest.mark.parametrize(
    "source",
    [
        "from qemu_ring.machine.process import Process\nfrom .process import Process",
        "from qemu_ring.errors import HostError\nfrom .._compat import timeout",
        "from qemu_ring import __version__",
        "import asyncio\nimport qemu.qmp\nfrom qemu.qmp import QMPClient",
        "import qemu_ringlike",
    ],
)
def test_allowed_import_is_let_through(source: str) -> None:
    assert violations(source, "qemu_ring.machine.kvm") == []


def test_every_directory_is_a_layer() -> None:
    directories = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    caches = {name for name in directories if name.startswith((".", "__"))}
    assert directories - caches <= set(LAYERS)


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
