"""The report in a real browser, from disk."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.report import write_report

pytestmark = pytest.mark.timeout(400)  # drawing and a browser, on a busy host

AXES = {"policy": ["best-effort", "quiesce"], "memory_bytes": [1 << 26, 1 << 27]}
PLOTS = {
    "one": [
        "time",
        "downtime",
        "guest-downtime",
        "scaling-memory-bytes",
        "stale-pages",
        "timeline",
    ],
    "two": ["change", "time", "downtime", "guest-downtime", "stale-pages", "timeline"],
}


@pytest.fixture(scope="module")
def pages(make_results: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("pages")
    results = [make_results(AXES, repeats=3, seed=seed) for seed in (1, 2)]
    write_report(results[:1], directory / "one.html")
    write_report(results, directory / "two.html")
    return {name: directory / f"{name}.html" for name in PLOTS}


@pytest.mark.parametrize("which", PLOTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page(tab: Any, pages: dict[str, Path], which: str, scheme: str, width: int) -> None:
    tab.show(pages[which], width=width, scheme=scheme)
    names = tab.evaluate("[...document.querySelectorAll('figure')].map((f) => f.dataset.plot)")
    assert names == PLOTS[which]
    marks = tab.evaluate(
        "[...document.querySelectorAll('.plot')].map((p) => "
        "p.querySelectorAll('svg .role-mark path, svg .role-mark line').length)"
    )
    assert all(count > 0 for count in marks), dict(zip(names, marks, strict=True))
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(
        "[...document.querySelectorAll('.plot')].every((p) => "
        "p.querySelector('svg').getBoundingClientRect().width <= p.clientWidth + 0.5 && "
        "p.scrollWidth <= p.clientWidth)"
    )
    assert tab.complaints == []
    assert tab.requests == [pages[which].as_uri()]


def luminance(colour: str) -> float:
    """Tell how light a colour is, 0 to 1; WCAG's relative luminance."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * share for part, share in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(tab: Any, pages: dict[str, Path], scheme: str) -> None:
    tab.show(pages["two"], width=1280, scheme=scheme)
    background = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (background > 0.9) if scheme == "light" else (background < 0.05)
    colours = tab.evaluate(
        """[...new Set([
            ...[...document.querySelectorAll("h1, p, td, th, strong, small, summary")]
                .map((one) => getComputedStyle(one).color),
            ...[...document.querySelectorAll("svg text")]
                .map((one) => getComputedStyle(one).fill),
        ])]"""
    )
    assert len(colours) > 3
    for colour in colours:
        pair = sorted([luminance(colour), background])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, colour


def test_plots_follow_the_colour_scheme(tab: Any, pages: dict[str, Path]) -> None:
    tab.show(pages["one"], width=1280, scheme="light")
    fill = "getComputedStyle(document.querySelector('figure svg text')).fill"
    before = tab.evaluate(fill)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab.call("Emulation.setEmulatedMedia", features=features)
    assert luminance(tab.evaluate(fill)) > luminance(before) + 0.2


def test_another_run_can_be_chosen(tab: Any, pages: dict[str, Path]) -> None:
    tab.show(pages["one"], width=1280, scheme="light")
    figure = "document.querySelector('figure[data-plot=timeline]')"
    before = tab.evaluate(f"{figure}.querySelector('svg').outerHTML")
    assert tab.evaluate(f"{figure}.querySelectorAll('option').length") == 12
    tab.evaluate(
        f"""new Promise((resolve) => {{
            new MutationObserver((_, observer) => {{
                if ({figure}.querySelector("svg")) {{ observer.disconnect(); resolve(true); }}
            }}).observe({figure}.querySelector(".plot"), {{ childList: true, subtree: true }});
            const select = {figure}.querySelector("select");
            select.selectedIndex = 5;
            select.dispatchEvent(new Event("change"));
        }})"""
    )
    assert tab.evaluate(f"{figure}.querySelector('svg').outerHTML") != before
    assert tab.complaints == []


def test_mark_tells_its_numbers(tab: Any, pages: dict[str, Path]) -> None:
    tab.show(pages["one"], width=1280, scheme="light")
    # The last mark is drawn above the others.
    place = tab.evaluate(
        """(() => {
            const marks = document.querySelectorAll(
                "figure[data-plot=time] svg .mark-symbol.role-mark path");
            const mark = marks[marks.length - 1];
            mark.scrollIntoView({ block: "center" });
            const box = mark.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    told = tab.evaluate("document.querySelector('#vg-tooltip-element')?.innerText ?? ''")
    assert "Migration time" in told
    assert "Repeat" in told


def test_window_that_becomes_narrow(tab: Any, pages: dict[str, Path]) -> None:
    tab.show(pages["one"], width=1280, scheme="light")
    tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=400,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    fits = "[...document.querySelectorAll('.plot')].every((p) => p.scrollWidth <= p.clientWidth)"
    assert tab.evaluate(
        f"""new Promise((resolve) => {{
            const look = () => {{
                const svg = document.querySelector(".plot svg");
                if (svg && svg.viewBox.baseVal.width <= 400 && {fits}) resolve(true);
                else setTimeout(look, 20);
            }};
            look();
        }})"""
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("which", PLOTS)
def test_prints(tab: Any, pages: dict[str, Path], which: str) -> None:
    tab.show(pages[which], width=1280, scheme="dark")
    printed = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
    assert printed.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 3
    # All of it is there, and closed again on the screen.
    assert not tab.evaluate("document.querySelectorAll('details[open]').length")
    # On paper it is light, whatever the screen.
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor")) > 0.9
    heights = tab.evaluate(
        "[...document.querySelectorAll('details table, details pre')]"
        ".map((one) => one.getBoundingClientRect().height)"
    )
    assert len(heights) > 3
    assert all(height > 10 for height in heights), "what is folded on the screen is on paper"
    assert tab.complaints == []
