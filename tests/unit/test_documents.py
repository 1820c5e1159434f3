"""What CONTRIBUTING.md and the configuration of editors and hooks name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import qemu_ring

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_files_of_the_guide_are_there() -> None:
    named = set(re.findall(r"`((?:qemu_ring|tests|patches|docs|experiments)/[\w./-]*)`", GUIDE))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_targets_of_the_guide_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", GUIDE.replace("`make`", ""))) <= targets


def test_hooks_are_what_pre_commit_takes() -> None:
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"],
        cwd=ROOT,
        check=True,
        timeout=60,
    )


def test_changes_begin_with_what_is_not_released() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert qemu_ring.__version__ in versions


def test_documents_are_on_the_map() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)\)", (ROOT / "README.md").read_text("utf-8")))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
