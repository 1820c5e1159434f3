"""The model of memslot removal: each case is as it is known to be, and the cases tell apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.check import CASES, MODEL, Case, check


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    """Two vCPUs without a loss are millions of states."""
    return [pytest.mark.full] if "VCPUS=2" in case.options and not case.loses else []


@pytest.mark.timeout(900)  # Spin takes seconds on a quiet host, minutes on a busy one
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=_marks(case)) for case in CASES]
)
def test_case_loses_or_not(case: Case, tmp_path: Path) -> None:
    verdict = check(case, tmp_path)
    assert verdict.loses is case.loses
    # A search that found nothing, because nothing could happen, would be over at once.
    assert verdict.states > (1000 if verdict.loses else 20_000)


def test_loss_comes_with_its_steps(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "best-effort, ring")
    steps = check(case, tmp_path).steps
    lines = MODEL.read_text().splitlines()
    assert {"vcpu", "main_thread", "migration"} <= {process for process, _, _ in steps}
    last_store = max(i for i, step in enumerate(steps) if "writes_left" in step[2])
    last_send = [i for i, (_, line, _) in enumerate(steps) if "differs = false" in lines[line - 1]]
    assert not [i for i in last_send if i > last_store], "the page was sent after its last store"
