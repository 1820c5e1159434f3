"""What `make test` leaves out: nothing but what is marked, and no pair of a matrix' values."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import Row, cover

ROOT = Path(__file__).resolve().parents[2]


def product(**axes: int) -> list[Row]:
    values = itertools.product(*map(range, axes.values()))
    return [dict(zip(axes, row, strict=True)) for row in values]


def pairs(rows: list[Row]) -> set[object]:
    return {pair for row in rows for pair in itertools.combinations(sorted(row.items()), 2)}


@pytest.mark.parametrize(
    ("axes", "at_most"),
    [
        ({"kind": 15, "channel": 2, "tracking": 2, "vcpus": 2}, 31),
        ({"a": 2, "b": 2, "c": 2, "d": 2, "e": 2}, 7),
        ({"a": 4, "b": 3, "c": 3}, 13),
        ({"a": 3, "b": 3}, 9),
    ],
)
def test_few_rows_have_all_pairs(axes: dict[str, int], at_most: int) -> None:
    rows = product(**axes)
    chosen = cover(rows)
    assert pairs([rows[index] for index in chosen]) == pairs(rows)
    assert len(chosen) <= at_most


def test_only_what_can_be_is_covered() -> None:
    rows = [row for row in product(a=3, b=3, c=3) if row["a"] != row["b"]]
    assert pairs([rows[index] for index in cover(rows)]) == pairs(rows)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Tests of both tiers beside this repository's conftest.py."""
    (tmp_path / "tests").mkdir()
    for path in (ROOT / "tests").glob("*.py"):
        (tmp_path / "tests" / path.name).write_text(path.read_text())
    markers = "\n".join(
        f"  {name}" for name in ("alternating", "full", "pairwise", "qemu", "kvm", "ring")
    )
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\naddopts = --strict-markers --import-mode=importlib\nmarkers =\n{markers}\n"
    )
    (tmp_path / "tests/test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.full\n"
        "def test_long(): ...\n"
        "def test_short(): ...\n"
        "@pytest.mark.pairwise(each='c')\n"
        "@pytest.mark.parametrize('a', range(5))\n"
        "@pytest.mark.parametrize('b', [*range(5), pytest.param(5, marks=pytest.mark.skip)])\n"
        "@pytest.mark.parametrize('c', range(3))\n"
        "@pytest.mark.parametrize('d', range(2))\n"
        "def test_matrix(a, b, c, d): assert b < 5\n"
        "@pytest.fixture(params=['x', 'y'])\n"
        "def binary(request): return request.param\n"
        "@pytest.mark.alternating('binary')\n"
        "def test_alone(binary): ...\n"
        "@pytest.mark.alternating('binary')\n"
        "@pytest.mark.parametrize('case', range(5))\n"
        "def test_turns(binary, case): ...\n"
    )
    return tmp_path


def run(project: Path, *arguments: str) -> tuple[list[str], str]:
    """The names of the tests that passed, and all that pytest says."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"::(\S+).*? PASSED", done.stdout), done.stdout


def test_full_runs_all_and_else_what_is_marked_is_left_out(project: Path) -> None:
    fast, said = run(project)
    everything, _ = run(project, "--full")
    assert "`make test-full` runs all" in said
    assert {*fast} < {*everything}
    assert {"test_long", "test_short"} <= {*everything}
    assert "test_short" in fast
    assert "test_long" not in fast
    assert len([name for name in everything if "matrix" in name]) == 5 * 5 * 3 * 2
    rows = [re.findall(r"\d", name) for name in fast if "matrix" in name]
    assert len(rows) == 5 * 5 * 3
    for d, c, b, a in itertools.product(range(2), range(3), range(5), range(5)):
        for wanted in ({0: d, 1: c, 2: b}, {0: d, 1: c, 3: a}, {1: c, 2: b, 3: a}):
            assert any(all(row[i] == str(n) for i, n in wanted.items()) for row in rows)


def test_of_two_programs_each_has_its_turn(project: Path) -> None:
    fast, _ = run(project, "-k", "alone or turns")
    everything, _ = run(project, "-k", "alone or turns", "--full")
    assert len(everything) == 2 + 2 * 5
    assert len(fast) == 1 + 5
    chosen = re.findall(r"\[(?:(\d)-)?([xy])(?:-(\d))?\]", " ".join(fast))
    assert len({before or after for before, _, after in chosen}) == 1 + 5
    assert {name for _, name, _ in chosen} == {"x", "y"}
