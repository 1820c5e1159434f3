"""docs/migration.md says what is so."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import qemu_ring.migration
from qemu_ring.cli.migrate.command import migrate

TEXT = (Path(__file__).resolve().parents[3] / "docs/migration.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.qemu
def test_first_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", EXAMPLES[0]],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pass 1 took ")
    assert done.stdout.endswith("completed stale pages: 0\n")


def test_other_examples_name_what_there_is() -> None:
    assert len(EXAMPLES) == 3
    for example in EXAMPLES[1:]:
        tree = compile(
            example, "example", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for name in names:
            assert name[0].islower() or hasattr(qemu_ring.migration, name), name


def test_commands_parse() -> None:
    lines = re.findall(r"^qemu-ring migrate (.*)$", TEXT, re.MULTILINE)
    assert len(lines) == 15
    for line in lines:
        with click.Context(migrate) as context:
            migrate.parse_args(context, shlex.split(line))


def test_options_are_those_of_a_plan() -> None:
    table = TEXT.partition("### Options of a plan")[2].partition("\n###")[0]
    cells = re.findall(r"^\| (.*?) \| ", table, re.MULTILINE)[1:]
    named = {name for cell in cells for name in re.findall(r"`(\w+)", cell)} - {"DirtyLimit"}
    fields = set(qemu_ring.migration.MigrationPlan.__dataclass_fields__)
    assert named - {"legacy"} == fields - {"kind", "channel", "tls"}
