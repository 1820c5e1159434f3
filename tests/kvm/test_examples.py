"""The programs in examples/ run as they are, and say what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


FEW = ("migrate.py", "downtime.py", "ring_sweep.py", "ring_fill.py", "save.py")
"""Programs that a researcher would write first, in fewer than forty lines."""
SWEEP = """
guest:
  memory: 32 MiB
  workload:
    regions: [{name: heap, address: 16 MiB, size: 8 MiB}]
    streams: [{pattern: random, pages-per-second: 1000}]
matrix: {guest.tracking: [ring:1024, ring:4096]}
repeats: 1
"""


def output(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", f"examples/{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_are_tested() -> None:
    names = {path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py"}
    assert names == {*FEW, "removals.py"}


@pytest.mark.parametrize("name", FEW)
def test_few_lines(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 40


@pytest.mark.ring
def test_migrate() -> None:
    text = output("migrate.py")
    assert re.search(r"^pass 1: [\d.]+ s, \d+ MB/s dirtied$", text, re.MULTILINE)
    assert text.endswith("ms of downtime\nstale pages: 0\n")


@pytest.mark.ring
def test_downtime() -> None:
    text = output("downtime.py")
    assert re.fullmatch(r"precopy: median [\d.]+ ms, n=5\npostcopy: median [\d.]+ ms, n=5\n", text)


@pytest.mark.ring
def test_ring_sweep(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("vl_convert")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    text = output("ring_sweep.py", str(tmp_path / "sweep.yaml"), str(tmp_path / "results"))
    assert re.search(r"^1024 +[\d.]+ +[\d.]+\n4096 +[\d.]+ +[\d.]+$", text, re.MULTILINE)
    assert (tmp_path / "results/report.html").stat().st_size > 10_000
    assert list((tmp_path / "results/report_plots").glob("*.svg"))


@pytest.mark.ring
@pytest.mark.usefixtures("patched_qemu")
@pytest.mark.skipif("QEMU_RING_PATCHED_QEMU" in os.environ, reason="it takes the one built here")
def test_ring_fill() -> None:
    *looks, last = output("ring_fill.py").splitlines()
    assert re.fullmatch(r"migrated in [\d.]+ s", last)
    fills = [re.fullmatch(r" *[\d.]+ s +(\d+) +(\d+)  of 4096", one) for one in looks]
    assert all(fills)
    assert any(int(found[1]) + int(found[2]) > 0 for found in fills if found is not None)


@pytest.mark.ring
def test_save() -> None:
    assert re.fullmatch(r"[\d,]+ bytes sent\nrestored in [\d.]+ s\n", output("save.py"))


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
