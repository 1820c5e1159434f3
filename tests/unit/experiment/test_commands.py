"""`qemu-ring experiment`, as far as no guest is needed: what it prints, and its exit status."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from qemu_ring.cli.main import main
from qemu_ring.errors import ExitStatus
from qemu_ring.experiment import json_schema, parse_experiment

from .conftest import EXPERIMENT, Outcome, Write, outcomes

ROOT = Path(__file__).resolve().parents[3]
SMOKE = str(ROOT / "experiments/smoke.yaml")
YESTERDAY = Path(__file__).parent / "data/v1"
BITMAP, RING = "tracking=bitmap", "tracking=ring:4096"
Printed = tuple[object, str, str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory with results of version 1, and some files with mistakes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(YESTERDAY, tmp_path / "results/v1")
    (tmp_path / "wrong.yaml").write_text(EXPERIMENT.replace("repeats: 3", "repeats: 0"))
    (tmp_path / "broken.yaml").write_text("guest: [\n")


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> Printed:
    with pytest.raises(SystemExit) as ended:
        main(["experiment", *arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "wrong.yaml"], "wrong.yaml:14: repeats: must be greater than or equal to 1,"),
        (["plan", "broken.yaml"], "broken.yaml:2: "),
        (["plan", "none.yaml"], "qemu-ring: none.yaml: No such file or directory"),
        (["run", "wrong.yaml"], "wrong.yaml:14: repeats: must be greater than or equal to 1,"),
        (["run", "wrong.yaml", "--dry-run"], "wrong.yaml:14: repeats: must be"),
        (["run", SMOKE, "--qemu", "/no/such"], "qemu-ring: /no/such does not exist; name a"),
        (["run", SMOKE, "--memory", "1G"], "qemu-ring: --memory is for several runs at a time"),
        (["run", SMOKE, "--cpus", "0"], "qemu-ring: a budget of 0 CPUs cannot be; there are"),
        (["run", SMOKE, "--cpus", "1", "--memory", "1Q"], "qemu-ring: Invalid value for '--mem"),
        (["resume", "none"], "qemu-ring: none holds no results"),
        (["list", "none"], "qemu-ring: none is no directory; name one with results below it"),
        (["show", "none"], "qemu-ring: none holds no results"),
        (["show", "results/v1", "--cell", "zz"], "qemu-ring: 0 cells have an id that begins"),
        (["compare", "results/v1"], "qemu-ring: name B, or choose cells of A with --a and --b"),
        (["compare", "results/v1", "none"], "qemu-ring: none holds no results"),
        (["compare", "results/v1", "results/v1", "--a", "x"], "qemu-ring: x is not KEY=VALUE;"),
        (["compare", "results/v1", "results/v1", "--alpha", "2"], "qemu-ring: alpha must be"),
        (["compare", "results/v1", "results/v1", "--metric", "x"], "qemu-ring: Invalid value"),
        (["report", "none", "-o", "r.html"], "qemu-ring: none holds no results"),
        (["report", "results/v1", "-o", "/proc/x/r.html"], "qemu-ring: cannot write /proc/x"),
        (["export", "none"], "qemu-ring: none holds no results"),
        (["export", "results/v1", "-o", "/proc/x"], "qemu-ring: /proc/x: "),
        (["export", "results/v1", "--format", "xls"], "qemu-ring: Invalid value for '--format'"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    status, out, err = ran(capsys, *arguments)
    assert (status, out) == (ExitStatus.USAGE, "")
    assert err.startswith(said)
    assert err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_plan(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ran(capsys, "plan", SMOKE)
    assert (status, err) == (ExitStatus.GOOD, "")
    assert "smoke: 4 cells, 4 runs each, interleaved: 16 runs, about " in out
    assert ran(capsys, "run", SMOKE, "--dry-run")[1] == out
    document = json.loads(ran(capsys, "plan", SMOKE, "--json")[1])
    assert document["schema"] == {"name": "qemu-ring.experiment-plan", "version": 1}
    assert len(document["cells"]) == 4
    assert len(document["order"]) == 16
    assert 0 < document["estimate_seconds"] < document["most_seconds"]
    assert json.loads(ran(capsys, "plan", "--schema")[1]) == json_schema()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ran(capsys, "list")
    assert status == ExitStatus.GOOD
    assert "results/v1" in out
    (found,) = json.loads(ran(capsys, "list", "results", "--json")[1])["results"]
    assert (found["directory"], found["runs"], found["done"]) == ("results/v1", 6, 6)
    shutil.rmtree("results")
    assert ran(capsys, "list") == (ExitStatus.GOOD, "no results below results\n", "")


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ran(capsys, "show", "results/v1")
    document = json.loads(ran(capsys, "show", "results/v1", "--json")[1])
    assert document["statuses"].keys() == {"ok", "not-converged"}
    for cell in document["cells"]:
        assert cell["id"] in out
        _, one, _ = ran(capsys, "show", "results/v1", "--cell", cell["id"][:6])
        assert one.startswith(f"{cell['name']} ({cell['id']})")
        shown = json.loads(ran(capsys, "show", "results/v1", "--cell", cell["id"], "--json")[1])
        assert len(shown["runs"]) == cell["runs"] + 1, "the warm-up too"


@pytest.mark.parametrize(
    ("bitmap", "ring", "status", "word"),
    [
        (outcomes(1, 8), outcomes(1, 8, seed=2), ExitStatus.GOOD, "same"),
        (outcomes(1, 8), outcomes(2, 8), ExitStatus.BAD, "worse"),
        (outcomes(2, 8), outcomes(1, 8), ExitStatus.GOOD, "better"),
        (outcomes(1, 2), outcomes(2, 2), ExitStatus.FAILED, "too few"),
    ],
)
def test_compare(
    capsys: pytest.CaptureFixture[str],
    write: Write,
    tmp_path: Path,
    bitmap: Iterable[Outcome],
    ring: Iterable[Outcome],
    status: ExitStatus,
    word: str,
) -> None:
    plan = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 8"))
    write(tmp_path / "r", plan, {BITMAP: bitmap, RING: ring})
    where = ["compare", "r", "--a", "tracking=bitmap", "--b", "tracking=ring:4096"]
    ended, out, err = ran(capsys, *where)
    assert ended == status
    assert word in out
    assert f"{BITMAP} -> {RING}" in out
    assert err.count("\n") == (status is ExitStatus.FAILED)
    document = json.loads(ran(capsys, *where, "--json")[1])
    assert document["worse"] == (status is ExitStatus.BAD)
    assert len(document["cells"][0]["differences"]) == 3


def test_export(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ran(capsys, "export", "results/v1", "--format", "csv", "-o", "tables")
    names = ["runs", "iterations", "samples", "removals"]
    assert out.splitlines() == [f"tables/{name}.csv" for name in names]
    assert Path("tables/runs.csv").read_text().count("\n") == 7


def test_report_is_put_with_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ran(capsys, "report", "results/v1")
    assert (status, out, err) == (ExitStatus.GOOD, "results/v1/report.html\n", "")
    assert Path("results/v1/report.html").read_text().startswith("<!DOCTYPE html>")
    assert list(Path("results/v1/report_plots").glob("*.png"))
