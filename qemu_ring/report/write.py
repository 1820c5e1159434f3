"""Puts a report together and writes it."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from qemu_ring.errors import HostError, UsageError
from qemu_ring.experiment import Results, read_results
from qemu_ring.report.apart import done_apart

__all__ = ["write_report"]

_PORTION_BYTES = 200_000
"""Of descriptions; a process is half a second of start."""


def write_report(
    results: Sequence[Path | Results],
    output: Path,
    *,
    plots: Path | None = None,
    read: Callable[[Path], Results] = read_results,
    apart: bool = False,
) -> None:
    """Write one HTML file that needs nothing else, and each of its plots as SVG and PNG.

    Args:
        results: one experiment's, or their directory; or of two, which are compared.
        output: the HTML file; one that is there is replaced.
        plots: the directory for the plots; made if need be, files of the same names replaced.
            Default: beside `output`, named as it is with `_plots` for its suffix.
        read: reads a directory.
        apart: work out what is said, draw it, and bundle the script, in a child for each (by
            fork): what each takes, 150 MiB and more, is given back in between. Not where this
            process has other threads.

    Raises:
        UsageError: not one or two directories, not results, or the files cannot be written.
        HostError: what the extra `report` installs is missing.
    """
    if len(results) not in (1, 2):
        raise UsageError(f"a report is of one experiment or of two, not of {len(results)}")
    for name in ("jinja2", "vl_convert"):
        if importlib.util.find_spec(name) is None:
            raise HostError(
                f"a report needs the Python package {name}, which is not installed",
                hint="run: pip install 'qemu-ring[report]'",
            )
    do: Callable[[Callable[[], Any]], Any] = done_apart if apart else _done
    draft: _Draft = do(partial(_draft, results, read))
    directory = plots or output.with_name(f"{output.stem}_plots")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _replacement(output) as file:  # first, for a page that cannot be written is soon told
            script = ""
            if draft.drawings:
                for some in _portions(draft.drawings):
                    do(partial(_draw, some, directory))
                script = do(_script)
            for part in (draft.before, script, draft.after):
                file.write(part.encode("utf-8", "backslashreplace"))
    except OSError as error:
        where = error.filename or output
        raise UsageError(f"cannot write {where}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Draft:
    """A page without its script, and what is to be drawn: names, and descriptions as JSON."""

    before: str
    after: str
    drawings: list[tuple[str, str]]


def _done(work: Callable[[], Any]) -> Any:
    return work()


def _draft(results: Sequence[Path | Results], read: Callable[[Path], Results]) -> _Draft:
    from qemu_ring.report import render
    from qemu_ring.report.page import build_page

    page = build_page([one if isinstance(one, Results) else read(one) for one in results])
    drawings = [(name, json.dumps(spec)) for plot in page.plots for name, spec in plot.drawings()]
    return _Draft(*render.html(page), drawings)


def _portions(drawings: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """What is drawn by one process, whose memory grows with it."""
    portion: list[tuple[str, str]] = []
    for one in drawings:
        if portion and sum(len(spec) for _, spec in [*portion, one]) > _PORTION_BYTES:
            yield portion
            portion = []
        portion.append(one)
    yield portion


def _draw(drawings: Sequence[tuple[str, str]], directory: Path) -> None:
    """Draw each plot, in light colours."""
    from qemu_ring.report import drawing

    for name, spec in drawings:
        svg = drawing.svg(json.loads(spec))
        for path, content in ((f"{name}.svg", svg.encode()), (f"{name}.png", drawing.png(svg))):
            with _replacement(directory / path) as file:
                file.write(content)


def _script() -> str:
    from qemu_ring.report import drawing

    return drawing.script()


@contextmanager
def _replacement(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
