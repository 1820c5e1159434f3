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
AXIS_OF_MARKUP = 'migration.multifd: {"[/x]": 2, "[red]a": 0}'
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
        (["resume", "results/v1", "--retry", "stale"], "qemu-ring: Invalid value for '--retry': "),
        (["resume", "results/v1", "--retry", "x,crashed"], "qemu-ring: Invalid value for '--retr"),
        (["resume", "results/v1", "--repeats", "0"], "qemu-ring: Invalid value for '--repeats': "),
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
    assert "smoke: 4 cells, 5 runs each, interleaved: 20 runs, about " in out
    assert ran(capsys, "run", SMOKE, "--dry-run")[1] == out
    document = json.loads(ran(capsys, "plan", SMOKE, "--json")[1])
    assert document["schema"] == {"name": "qemu-ring.experiment-plan", "version": 1}
    assert len(document["cells"]) == 4
    assert len(document["order"]) == 20
    assert 0 < document["estimate_seconds"] < document["most_seconds"]
    assert json.loads(ran(capsys, "plan", "--schema")[1]) == json_schema()


def test_plan_prints_names_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = EXPERIMENT.replace("guest.tracking: [bitmap, ring:4096]", AXIS_OF_MARKUP)
    (tmp_path / "e.yaml").write_text(text)
    status, out, _ = ran(capsys, "plan", "e.yaml")
    assert status == ExitStatus.GOOD
    assert "multifd=[/x] " in out
    assert "multifd=[red]a " in out


def test_long_plan_is_cut_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rates = ", ".join(map(str, range(1, 502)))
    axis = f"guest.workload.streams[0].pages-per-second: [{rates}]"
    text = EXPERIMENT.replace("guest.tracking: [bitmap, ring:4096]", axis)
    (tmp_path / "e.yaml").write_text(text)
    _, out, _ = ran(capsys, "plan", "e.yaml")
    assert "\npages-per-second=500 " in out
    assert "pages-per-second=501 " not in out
    assert "and 1 more cells, which --json lists\n" in out
    assert len(json.loads(ran(capsys, "plan", "e.yaml", "--json")[1])["cells"]) == 501


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


def test_compare_tells_why_nothing_was_decided(
    capsys: pytest.CaptureFixture[str], write: Write, tmp_path: Path
) -> None:
    plan = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 8"))
    write(tmp_path / "a", plan, {BITMAP: outcomes(1, 8), RING: outcomes(1, 8, seed=2)})
    write(tmp_path / "b", plan, {BITMAP: [*outcomes(1, 7), ("not-converged", None)]})
    status, out, err = ran(capsys, "compare", "a", "b")
    assert status == ExitStatus.FAILED
    assert "8 ok  7 ok, 1 not-converged" in out
    assert err.count("\n") == 1
    assert "B is not finished: 8 of 16 runs" in err
    assert "fewer runs of B completed in 1 cell" in err
    document = json.loads(ran(capsys, "compare", "a", "b", "--json")[1])
    assert (document["worse"], document["decided"]) == (False, False)
    assert len(document["undecided"]) == 2
    write(tmp_path / "c", plan, {BITMAP: outcomes(2, 8)})
    status, out, err = ran(capsys, "compare", "a", "c")
    assert (status, err) == (ExitStatus.BAD, "")
    assert "undecided: B is not finished" in out


def test_compare_where_a_has_a_zero(
    capsys: pytest.CaptureFixture[str], write: Write, tmp_path: Path
) -> None:
    plan = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 8"))
    nothing = [("ok", 0.0)] * 7 + [("ok", 1.0)]
    write(tmp_path / "a", plan, {BITMAP: nothing, RING: nothing})
    write(tmp_path / "b", plan, {BITMAP: outcomes(1, 8), RING: outcomes(1, 8)})
    assert ran(capsys, "compare", "a", "b")[0] == ExitStatus.BAD
    assert "Infinity" not in ran(capsys, "compare", "a", "b", "--json")[1]


def test_words_of_the_user_are_no_markup(
    capsys: pytest.CaptureFixture[str], write: Write, tmp_path: Path
) -> None:
    text = EXPERIMENT.replace(
        "  guest.tracking: [bitmap, ring:4096]",
        '  settle-seconds: {"[/x] :smile:": 1, "[red]y": 2}',
    )
    plan = parse_experiment(text)
    names = [cell.name for cell in plan.cells]
    write(tmp_path / "r", plan, {name: [("crashed", None), ("stale", 1.0)] for name in names})
    path = tmp_path / "r/results.jsonl"
    path.write_text(path.read_text().replace('"error":"crashed"', '"error":"[/usr/bin/q] ended"'))
    for arguments in (["show", "r"], ["compare", "r", "r"], ["list", "."]):
        status, out, _ = ran(capsys, *arguments)
        assert status in (ExitStatus.GOOD, ExitStatus.BAD)
        assert arguments[0] == "list" or all(name in out for name in names)
    _, out, _ = ran(capsys, "show", "r", "--cell", plan.cells[0].id)
    assert "crashed: [/usr/bin/q] ended" in out
    assert "settle-seconds: [/x] :smile:" in out


def test_show_counts_what_a_warm_up_lost(
    capsys: pytest.CaptureFixture[str], write: Write, tmp_path: Path
) -> None:
    plan = parse_experiment(EXPERIMENT + "warm-up: 1\n")
    write(tmp_path / "r", plan, {BITMAP: [("stale", 1.0), *outcomes(1, 3)], RING: outcomes(1, 4)})
    path = tmp_path / "r/results.jsonl"
    path.write_text(path.read_text().replace('"stale_pages":null', '"stale_pages":7', 1))
    _, out, _ = ran(capsys, "show", "r")
    assert "3 ok; to warm up: 1 stale" in out
    document = json.loads(ran(capsys, "show", "r", "--json")[1])
    assert [one["stale_pages"] for one in document["cells"]] == [7, 0]
    assert document["cells"][0]["warm_up_statuses"] == {"stale": 1}


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
