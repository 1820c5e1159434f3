"""Files of programs: written, read again, and refused where they are none."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.dirty import Tracking
from qemu_ring.errors import FieldError, UsageError
from qemu_ring.memslot import FlushPolicy
from qemu_ring.torture import FindingKind, Only, Reproducer, TortureFinding, TortureOptions
from qemu_ring.torture.generate import programs
from qemu_ring.torture.model import Features
from qemu_ring.torture.steps import Begin, Complete, Cycle, Program, Write

PROGRAM: Program = (Begin(), Write(), Cycle(times=32), Complete())
FINDING = TortureFinding(FindingKind.STALE, "3 pages of slot differ at the destination", 3, 3)


def made(program: Program = PROGRAM) -> Reproducer:
    options = TortureOptions(seed=7, vcpus=3, tracking=Tracking(), policy=FlushPolicy.BEST_EFFORT)
    return Reproducer.of(options, "7.2.22", FINDING, program)


def test_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    features = Features(windows=True, policies=tuple(FlushPolicy), postcopy=True, multifd=True)
    for program in (PROGRAM, *islice(programs(features, Only.ALL, 1), 20)):
        made(program).save(path)
        assert Reproducer.load(path) == made(program)
        assert path.read_text().count('{"do":') == len(program)  # a line for each step
    options = made().options()
    assert (options.seed, options.vcpus, str(options.tracking)) == (7, 3, "bitmap")
    assert options.policy is FlushPolicy.BEST_EFFORT
    assert made().options(FlushPolicy.QUIESCE).policy is FlushPolicy.QUIESCE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [{"do": "dance"}]}, "steps.0"),
        ({"steps": [{"do": "cycle", "times": 0}]}, "times"),
        ({"tracking": "log"}, "no such tracking"),
        ({"schema": {"name": "qemu-ring.prove", "version": 1}}, "schema.name"),
        ({"vcpus": 0}, "vcpus"),
        ({"more": 1}, "more"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "one.json"
    document = made().model_dump(mode="json", by_alias=True)
    path.write_text(json.dumps(document | change))
    with pytest.raises(UsageError, match=words):
        Reproducer.load(path)


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Reproducer.load(tmp_path / "none")
    (tmp_path / "one").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        Reproducer.load(tmp_path / "one")
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        made().save(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"vcpus": 31}, "vcpus 31 is out of range; use 1 to 30"),
        ({"seconds": 0.0}, "seconds must be greater than 0"),
        ({"shrink_seconds": float("nan")}, "shrink_seconds must be greater than 0"),
        ({"cancels": 0}, "cancels must be at least 1"),
    ],
)
def test_options_that_cannot_be(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(FieldError, match=words):
        TortureOptions(**wrong)
