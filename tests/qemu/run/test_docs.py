"""docs/guests.md says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qemu_ring.cli.run import run_command
from qemu_ring.guestfile import json_schema

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/guests.md").read_text(encoding="utf-8")


def test_tables_are_complete() -> None:
    options = set(re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE))
    assert options == {option.opts[0] for option in run_command.params if option.opts[0][0] == "-"}
    rows = re.findall(r"^\| (`[a-z][^|]*) \|", TEXT, re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`([a-z-]+)`", row)}
    assert keys == set(json_schema()["properties"]) - {"accelerator-properties"}


@pytest.mark.qemu
def test_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote True\n"
