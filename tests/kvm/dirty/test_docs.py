"""docs/dirty.md says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qemu_ring.cli.dirty_rate import dirty_rate
from qemu_ring.cli.limit import limit

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "dirty.md").read_text(encoding="utf-8")


def test_commands_are_ones_that_parse() -> None:
    lines = re.findall(r"^qemu-ring (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        name, *arguments = line.split()
        command: click.Command = {"dirty-rate": dirty_rate, "limit": limit}[name]
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        with click.Context(command) as context:
            command.parse_args(context, arguments)


def test_table_of_options_is_complete() -> None:
    described = set(re.findall(r"^\| `(--[a-z-]+)", TEXT, re.MULTILINE))
    assert described == {option.opts[0] for option in dirty_rate.params} - {"socket"}


@pytest.mark.ring
def test_library_example_runs() -> None:
    ((example, printed),) = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    rate = re.compile(r"^\d+ MB/s", re.MULTILINE)
    assert rate.sub("", done.stdout) == rate.sub("", printed)
    assert rate.search(done.stdout) is not None
