"""The programs in examples/ run as they are, and say what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def output(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", f"examples/{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_are_tested() -> None:
    names = {path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py"}
    assert names == {"migrate.py", "removals.py"}


@pytest.mark.ring
def test_migrate() -> None:
    text = output("migrate.py")
    assert re.search(r"^pass 1: [\d.]+ s, \d+ MB/s dirtied$", text, re.MULTILINE)
    assert text.endswith("ms of downtime\nstale pages: 0\n")


@pytest.mark.ring
@pytest.mark.skipif("QEMU_RING_PATCHED_QEMU" in os.environ, reason="it takes the one built here")
@pytest.mark.usefixtures("patched_qemu")
def test_removals() -> None:
    text = output("removals.py")
    found = re.findall(r"^([a-z-]+): (\d+) removals, (\d+) stale pages$", text, re.MULTILINE)
    assert [policy for policy, _, _ in found] == [
        "best-effort",
        "quiesce",
        "read-only",
        "tombstone",
    ]
    assert all(int(removals) >= 400 for _, removals, _ in found)
    assert [stale for _, _, stale in found[1:]] == ["0", "0", "0"]
