"""Which cells are compared with which, and what else is not the same in A and B."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.experiment import (
    Criteria,
    NothingInCommonError,
    Results,
    UndecidedError,
    compare_results,
    parse_experiment,
    read_results,
)
from qemu_ring.experiment.compare.verdicts import Verdict

from .conftest import EXPERIMENT, Maker, Outcome, Write, outcomes

BITMAP, RING = "tracking=bitmap", "tracking=ring:4096"
ONE = Criteria(metrics=("seconds",))


def other(text: str, tmp_path: Path, write: Write, **found: Iterable[Outcome]) -> Results:
    plan = parse_experiment(text.replace("repeats: 3", "repeats: 10"))
    path = tmp_path / f"other{len(list(tmp_path.iterdir()))}"
    runs = {
        cell.name: found.get(cell.name[9:13].strip(":"), outcomes(1, 10)) for cell in plan.cells
    }
    write(path, plan, runs)
    return read_results(path)


def test_cells_that_only_one_has(make: Maker, tmp_path: Path, write: Write) -> None:
    both = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    text = EXPERIMENT.replace("[bitmap, ring:4096]", "[bitmap, ring:1024]")
    found = compare_results(both, other(text, tmp_path, write), ONE)
    assert (found.only_a, found.only_b) == ((RING,), ("tracking=ring:1024",))
    assert found.undecided == ("1 cell is only in A", "1 cell is only in B")
    assert not compare_results(both, other(text, tmp_path, write), ONE, only_common=True).undecided
    stale = other(text, tmp_path, write, ring=outcomes(1, 10, status="stale"))
    lossy = compare_results(both, stale, ONE, only_common=True)
    assert lossy.worse
    assert lossy.regressions[0].startswith("tracking=ring:1024, which A does not have: 10 of 10")


def test_an_axis_of_one_value_each_is_what_is_compared(tmp_path: Path, write: Write) -> None:
    a, b = (
        other(EXPERIMENT.replace("[bitmap, ring:4096]", f"[{one}]"), tmp_path, write)
        for one in ("bitmap", "ring:1024")
    )
    found = compare_results(a, b, ONE)
    assert [cell.name for cell in found.cells] == ["tracking=bitmap -> tracking=ring:1024"]
    assert found.unlike["tracking"] == ("bitmap", "ring:1024")
    with pytest.raises(NothingInCommonError):
        two = EXPERIMENT.replace("[bitmap, ring:4096]", "[ring:1024, ring:2048]")
        compare_results(a, other(two, tmp_path, write), ONE)


def test_what_was_asked_differently_is_told(make: Maker, tmp_path: Path, write: Write) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    text = EXPERIMENT + "settle-seconds: 3\ntime-limit: 60\n"
    text = text.replace("  max-bandwidth", "  abort: {seconds: 9}\n  max-bandwidth")
    found = compare_results(a, other(text, tmp_path, write), ONE)
    assert found.unlike == {
        "migration.abort.seconds": (None, 9.0),
        "settle-seconds": (1.0, 3.0),
        "time-limit": (120.0, 60.0),
    }
    assert not found.undecided


def test_downtime_with_and_without_verification_is_not_compared(
    make: Maker, tmp_path: Path, write: Write
) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    b = other(EXPERIMENT + "verify: false\n", tmp_path, write)
    found = compare_results(a, b)
    assert [one.metric for one in found.cells[0].differences] == ["seconds", "bytes"]
    with pytest.raises(UndecidedError, match="downtime was not compared where only one had"):
        found.require_decided()
    assert found.unlike == {"verify": (True, False)}
    compare_results(a, b, ONE).require_decided()


def test_where_they_come_from_is_told(make: Maker) -> None:
    def source(results: Results, **changes: Any) -> Results:
        for record in results.records:
            record.provenance.update(
                {
                    "host": {"kernel": "6.1", "cpu_model": "made up", "memory_available_bytes": 1},
                    "kvm": {"manual_protect": True, "tsc_khz": 1},
                    "qemu": {"version": "10.0", "sha256": "aa", "build": None, **changes},
                    "versions": {"qemu-ring": "0.1.0", "python": "3.11"},
                }
            )
        return results

    a = source(make(bitmap=outcomes(1, 10), ring=outcomes(1, 10)))
    assert compare_results(a, a, ONE).provenance == {}
    b = source(
        make(bitmap=outcomes(1, 10), ring=outcomes(1, 10)),
        sha256="bb",
        build={"patches": ["0001.patch"], "built": 1},
    )
    b.records[3].provenance["host"] = {"kernel": "6.2", "memory_available_bytes": 2}
    b.records[3].provenance["kvm"]["tsc_khz"] = 2
    assert compare_results(a, b, ONE).provenance == {
        "host.kernel": ("6.1", ["6.1", "6.2"]),
        "qemu.sha256": ("aa", "bb"),
        "qemu.build.patches": (None, "0001.patch"),
    }


def test_cells_of_one_experiment(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1.3, 10))
    found = compare_results(
        a, a, ONE, where_a={"tracking": "bitmap"}, where_b={"tracking": "ring:4096"}
    )
    assert [cell.name for cell in found.cells] == [f"{BITMAP} -> {RING}"]
    assert found.cells[0].differences[0].verdict is Verdict.WORSE
    assert found.unlike == {"tracking": ("bitmap", "ring:4096"), "ring_entries": (None, 4096)}
    by_axis = compare_results(
        a, a, ONE, where_a={"guest.tracking": "bitmap"}, where_b={"guest.tracking": "ring:4096"}
    )
    assert by_axis.cells == found.cells


def test_wrong_choice(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 3))
    with pytest.raises(UsageError, match="has no parameter trackin"):
        compare_results(a, a, where_a={"trackin": "bitmap"})
    with pytest.raises(NothingInCommonError, match="no cell in common"):
        compare_results(a, a, where_a={"tracking": "bitmap"}, where_b={"tracking": "ring:1"})
    with pytest.raises(UsageError, match="would be one cell"):
        compare_results(a, a, where_a={"tracking": "bitmap"}, where_b={"vcpus": "1"})
