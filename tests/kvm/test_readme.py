"""The README says what is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qemu_ring.cli.commands import cli
from qemu_ring.cli.prove import prove_command
from qemu_ring.errors import ExitStatus

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_table_of_options_is_complete() -> None:
    described = set(re.findall(r"^\| `(--[a-z-]+)", README, re.MULTILINE))
    assert described == {option.opts[0] for option in prove_command.params}


def test_commands_are_ones_that_parse() -> None:
    lines = re.findall(r"^qemu-ring (.*?)(?: +#.*| > .*)?$", README, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        name, *arguments = line.split()
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        arguments = [a.replace("./qemu", "/") for a in arguments]  # a path that exists
        with click.Context(command) as context:
            command.parse_args(context, arguments)


def test_exit_statuses_are_all_there() -> None:
    table = README.partition("## Exit status")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE)
    assert {int(n) for row in rows for n in row.split(",")} == {int(s) for s in ExitStatus}


@pytest.mark.ring
def test_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"QEMU \(\d+, \d+, \d+\) wrote True\n", done.stdout)
