"""The changes that tests have to notice can be made, and are of today's code."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

from tools.mutants import Mutant, load

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = load()


def test_there_are_many() -> None:
    assert len({one.name for one in MUTANTS}) == len(MUTANTS) >= 20


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_it_can_be_made(one: Mutant) -> None:
    text = (ROOT / one.file).read_text(encoding="utf-8")
    changed = one.applied(text)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    named = [word for word in shlex.split(one.tests) if word.startswith("tests/")]
    assert named
    assert all((ROOT / word).exists() for word in named)
