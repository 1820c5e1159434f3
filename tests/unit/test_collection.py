"""Every test runs: pytest collects each file of tests that is in the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def collected(directory: Path, *arguments: str) -> dict[str, int]:
    """How many tests pytest finds in each file, as `make test` starts it."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (line.rpartition(": ") for line in done.stdout.splitlines())
    return {name: int(count) for name, _, count in lines if name.endswith(".py")}


def not_collected(files: Iterable[str], directory: Path, *arguments: str) -> list[str]:
    return sorted(set(files) - collected(directory, *arguments).keys())


def test_every_file_of_tests_is_collected() -> None:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=60)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    names = map(Path, listing.stdout.decode().split("\0"))
    files = [str(name) for name in names if name.match("test_*.py") and (ROOT / name).is_file()]
    assert len(files) > 100
    assert not_collected(files, ROOT, "--full") == []


@pytest.mark.parametrize("folder", ["build", "dist", "venv"])
def test_skipped_folder_is_noticed(tmp_path: Path, folder: str) -> None:
    files = [f"{folder}/test_one.py", "other/test_two.py"]
    for name in files:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("def test_it() -> None: ...\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    assert not_collected(files, tmp_path, "-o", f"norecursedirs={folder}") == files[:1]
