"""What is to be had from the package itself."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

import qemu_ring

NAMES = sorted(dir(qemu_ring))


def test_names_are_there_and_public_in_their_layers() -> None:
    assert len(NAMES) > 20
    elsewhere = []
    for name in NAMES:
        found = getattr(qemu_ring, name)
        module = getattr(found, "__module__", getattr(found, "__name__", ""))
        if module.startswith("qemu_ring."):  # a type alias has its own module
            layer = importlib.import_module(".".join(module.split(".")[:2]))
            if getattr(layer, name, None) is not found or name not in layer.__all__:
                elsewhere.append(name)
    assert elsewhere == []


def test_they_are_few_and_tell_what_they_are_of() -> None:
    """Whoever reads a program sees where a general word comes from: `from qemu_ring.verify ...`."""
    assert len(NAMES) <= 50
    assert not {"Block", "Kind", "Store", "Pattern", "Region", "Sample", "compare"} & set(NAMES)


def test_no_name_is_a_layers() -> None:
    """`qemu_ring.prove` is a package as soon as it is imported, whatever else it was."""
    for name in NAMES:
        assert importlib.util.find_spec(f"qemu_ring.{name}") is None


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        getattr(qemu_ring, "no_such_thing")  # noqa: B009 - mypy knows that it is not there


def test_package_imports_no_layer_by_itself() -> None:
    code = "import sys, qemu_ring; print([m for m in sys.modules if m.startswith('qemu_ring.')])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
