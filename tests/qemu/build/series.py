"""What both checks of a series ask of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from qemu_ring.build.patches import Series


def check_style(checkpatch: Path, series: Series) -> None:
    command: list[str | Path] = ["perl", checkpatch, "--no-tree", *series.patches]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("total: ")]
    assert len(verdicts) == len(series.patches)
    for line in verdicts:
        assert line.startswith("total: 0 errors, 0 warnings"), done.stdout
