"""Puts a report together and writes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from qemu_ring.errors import HostError, UsageError
from qemu_ring.experiment import Results, read_results
from qemu_ring.report.page import build_page

__all__ = ["write_report"]


def write_report(
    results: Sequence[Path | Results], output: Path, *, plots: Path | None = None
) -> None:
    """Write one HTML file that needs nothing else, and each of its plots as SVG and PNG.

    Args:
        results: one experiment's, or their directory; or of two, which are compared.
        output: the HTML file; one that is there is replaced.
        plots: the directory for the plots; made if need be, files of the same names replaced.
            Default: beside `output`, named as it is with `_plots` for its suffix.

    Raises:
        UsageError: not one or two directories, not results, or the files cannot be written.
        HostError: what the extra `report` installs is missing.
    """
    if len(results) not in (1, 2):
        raise UsageError(f"a report is of one experiment or of two, not of {len(results)}")
    page = build_page([one if isinstance(one, Results) else read_results(one) for one in results])
    directory = plots or output.with_name(f"{output.stem}_plots")
    try:
        from qemu_ring.report import render
    except ImportError as error:
        raise HostError(
            f"a report needs the Python package {error.name}, which is not installed",
            hint="run: pip install 'qemu-ring[report]'",
        ) from error
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _replacement(output) as file:  # first, for a page that cannot be written is soon told
            for name, content in render.drawings(page).items():
                with _replacement(directory / name) as plot:
                    plot.write(content)
            file.write(render.html(page).encode("utf-8", "backslashreplace"))
    except OSError as error:
        where = error.filename or output
        raise UsageError(f"cannot write {where}: {error.strerror}") from error


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
