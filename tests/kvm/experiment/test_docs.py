"""docs/experiments.md says what is so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from qemu_ring.cli.experiment.command import experiment
from qemu_ring.experiment import ExperimentFileError, Status, json_schema, parse_experiment

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "experiments"
YESTERDAY = ROOT / "tests/unit/experiment/data/v1"
(FILE,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def named(table: str) -> list[str]:
    """The first cells of a table's rows, without their backquotes."""
    part = TEXT.partition(table)[2].partition("\n\n")[0]
    return re.findall(r"^\| `?(.*?)`? \|", part, re.MULTILINE)


def test_example_is_one() -> None:
    plan = parse_experiment(FILE)
    assert [cell.name for cell in plan.cells] == [
        "tracking=bitmap, throttling=none",
        "tracking=ring:4096, throttling=none",
        "tracking=ring:4096, throttling=auto-converge",
        "tracking=ring:65536, vcpus=1",
    ]


def test_mistakes_are_told_so() -> None:
    wrong = FILE.replace("max-bandwidth", "max-bandwith").replace("65536", "65537")
    with pytest.raises(ExperimentFileError) as caught:
        parse_experiment(wrong, name="e.yaml")
    (said,) = re.findall(r"```\n(e\.yaml.*?)```", TEXT, re.DOTALL)
    for line, problem in zip(said.splitlines(), caught.value.problems, strict=True):
        assert problem.startswith(line.removesuffix("..."))


def test_commands_are_ones_that_parse() -> None:
    lines = re.findall(r"^qemu-ring experiment (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
    assert len(lines) >= 15
    for line in lines:
        name, *arguments = line.split()
        command = experiment.commands[name]
        with click.Context(command) as context:
            command.parse_args(context, arguments)
    assert {line.split()[0] for line in lines} == set(experiment.commands)


def test_table_of_keys_is_complete() -> None:
    keys = set(json_schema()["properties"]) - {"description", "warm-up"}
    described = {row.partition("`")[0] for row in named("| key | what it is |")}
    assert described == keys | {"migration.abort", "migration.goal"}
    parts = json_schema()["$defs"]
    for name in ("MigrationPart", "AbortPart", "NetworkPart", "RemovalsPart"):
        keys = parts[name]["properties"]
        missing = [key for key in keys if not re.search(rf"[`.]{key}`", TEXT)]
        assert missing == []


def test_table_of_statuses_is_complete() -> None:
    assert named("| status | when |") == [str(status) for status in Status]


def test_table_of_examples_is_complete() -> None:
    assert sorted(named("| file | question |")) == sorted(
        path.name for path in EXAMPLES.glob("*.yaml")
    )


def test_library_example_runs(tmp_path: Path) -> None:
    shutil.copytree(YESTERDAY, tmp_path / "results/smoke")
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ring:4096 +\d", done.stdout, re.MULTILINE)
