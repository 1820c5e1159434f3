"""README and docs say what is so."""

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

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
LONGEST_README = 150  # lines that somebody reads


def test_table_of_options_is_complete() -> None:
    described = set(re.findall(r"^\| `(--[a-z-]+)", PAGES["prove.md"], re.MULTILINE))
    assert described == {option.opts[0] for option in prove_command.params}


def test_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= LONGEST_README


def test_links_lead_somewhere() -> None:
    dead = []
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", text)
        dead += [f"{name}: {link}" for link in links if not (folder / link).exists()]
    assert dead == []


def test_reference_is_that_of_the_commands() -> None:
    script = [sys.executable, str(ROOT / "tools/commands.py")]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == PAGES["commands.md"], "run: python tools/commands.py > docs/commands.md"


@pytest.mark.parametrize("page", ["README.md", "prove.md", "build.md", "torture.md"])
def test_commands_are_ones_that_parse(page: str) -> None:
    lines = re.findall(r"^qemu-ring (.*?)(?: +#.*| > .*| &)?$", PAGES[page], re.MULTILINE)
    assert len(lines) >= 6
    for line in lines:
        name, *arguments = line.split()
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        if isinstance(command, click.Group) and not command.invoke_without_command:
            command = command.commands[arguments.pop(0)]
        arguments = [a.replace("./qemu", "/") for a in arguments]  # a path that exists
        with click.Context(command) as context:
            command.parse_args(context, arguments)


def test_exit_statuses_are_all_there() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \|", PAGES["exit-status.md"], re.MULTILINE)
    assert {int(n) for row in rows for n in row.split(",")} == {int(s) for s in ExitStatus}


@pytest.mark.ring
def test_library_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGES["library.md"], re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"QEMU \(\d+, \d+, \d+\) wrote True\n", done.stdout)
