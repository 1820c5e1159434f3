from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import HostError, UsageError
from qemu_ring.report import write_report

pytestmark = pytest.mark.timeout(300)  # drawing takes a minute on a busy host


@pytest.fixture(scope="module")
def report(make_results: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("report") / "made-up.html"
    axes = {"policy": ["best-effort", "quiesce"], "memory_bytes": [1 << 26, 1 << 27]}
    results = make_results(axes, repeats=2, description="<img src=x onerror=alert(1)>")
    write_report([results], output)
    return output


def test_plots_are_files_too(report: Path) -> None:
    plots = report.with_name("made-up_plots")
    names = {path.name for path in plots.iterdir()}
    for stem in ("time", "downtime", "guest-downtime", "scaling-memory-bytes", "stale-pages"):
        assert {f"{stem}.svg", f"{stem}.png"} <= names
    assert sum(name.startswith("timeline-") for name in names) == 8
    for path in plots.glob("*.svg"):
        root = ET.fromstring(path.read_text())
        assert root.tag.endswith("svg")
        assert "var(--" not in path.read_text(), "a colour that only the page has"
    assert "Migration time by cell" in (plots / "time.svg").read_text()
    (stale, *_) = plots.glob("timeline-policy-best-effort-*.svg")
    assert "40 stale pages" in stale.read_text(), "which run it is of"
    for path in plots.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_page_needs_nothing_else(report: Path) -> None:
    markup = re.sub(r"<script.*?</script>", "", report.read_text(), flags=re.DOTALL)
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", markup) == [
        "data:,",
        "x",  # of the description, in text
    ]
    assert report.stat().st_size < 2_000_000


def test_text_of_the_experiment_is_text(report: Path) -> None:
    text = report.read_text()
    assert text.count("<script") == text.count("</script>") == 2
    assert "<img" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "&lt;img src=x" in text
    assert "</script><b>" not in text


def test_verdict_comes_first(report: Path) -> None:
    text = report.read_text()
    assert text.index("stale pages in 2 of 8 migrations") < text.index("<table")
    assert text.index("<table") < text.index("<figure")


def test_output_is_replaced(report: Path, make_results: Any, tmp_path: Path) -> None:
    output, plots = tmp_path / "report.html", tmp_path / "elsewhere" / "plots"
    output.write_text("older")
    failed: dict[str, Any] = {
        "status": "crashed",
        "migration": None,
        "stale_pages": None,
        "stale": [],
    }
    nothing = make_results(repeats=1, change=lambda run, _: {**run, **failed})
    write_report([nothing], output, plots=plots)
    assert "No memory was compared" in output.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "report.html"]


@pytest.mark.parametrize("count", [0, 3])
def test_one_or_two_results(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="of one experiment or of two"):
        write_report([tmp_path] * count, tmp_path / "report.html")


def test_output_that_cannot_be_written(make_results: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results = make_results(
        repeats=1, change=lambda run, _: {**run, "status": "crashed", "migration": None}
    )
    with pytest.raises(UsageError, match=r"cannot write .*: Not a directory"):
        write_report([results], tmp_path / "file" / "report.html", plots=tmp_path / "plots")
    assert list((tmp_path / "plots").iterdir()) == []


def test_missing_extra_is_named(
    make_results: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "qemu_ring.report.render", raising=False)
    monkeypatch.delattr("qemu_ring.report.render", raising=False)
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(HostError, match=r"pip install 'qemu-ring\[report\]'"):
        write_report([make_results(repeats=1)], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
