"""`qemu-ring build`: parsing and printing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.progress import MofNCompleteColumn
from rich.text import Text

from qemu_ring.build import DEFAULT_VERSION, PARTS, SUITES, BuildOptions, BuiltQemu, build_qemu
from qemu_ring.build import BuildProgress as State
from qemu_ring.cli.frame.numbers import Whole
from qemu_ring.cli.frame.options import in_options, json_option
from qemu_ring.cli.frame.output import notes, print_json, progress_bar
from qemu_ring.cli.frame.running import run
from qemu_ring.errors import HostError
from qemu_ring.machine import KvmCapabilities, probe_host, probe_kvm, probe_qemu

__all__ = ["build_command"]


@click.command("build")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR|TARBALL",
    help="QEMU 7.2, 10.0 or 10.2 source, which is only read; default: Debian's, fetched by apt.",
)
@click.option(
    "--qemu-version",
    "version",
    type=click.Choice(list(SUITES)),
    help="Of Debian's QEMU: 7.2 as Debian 12 has it, or 10.0 of Debian 13.  [default: "
    f"{DEFAULT_VERSION}]",
)
@click.option(
    "--jobs", type=Whole(1, 1024), metavar="N", help="Compilers at a time; default: one a CPU."
)
@click.option(
    "--series",
    "part",
    type=click.Choice(PARTS),
    default=PARTS[-1],
    show_default=True,
    help="How far the patches are applied: fixes of upstream's defects, with the flush policies, "
    "with a dirty ring that sends less, with all that a laboratory needs.",
)
@click.option("--debug", is_flag=True, help="With QEMU's debug checks, not optimised.")
@json_option
def build_command(
    source: Path | None,
    version: str | None,
    jobs: int | None,
    part: str,
    debug: bool,
    as_json: bool,
) -> int:
    """Build a QEMU that loses no dirty bits.

    Its path is printed. It is kept, in $XDG_CACHE_HOME/qemu-ring or ~/.cache/qemu-ring, until
    its source, the patches, the compiler or the options change. Needs no root.
    """
    with in_options({"version": "--qemu-version", "part": "--series"}):
        options = BuildOptions(source=source, version=version, jobs=jobs, debug=debug, part=part)
    with _progress() as show:
        built = run(build_qemu(options, on_progress=show), on_signal=_stopping)
    if as_json:
        print_json(_document(built))
    else:
        _print_built(built)
    return 0


def _stopping() -> None:
    """Compilers and what they made take a moment to go."""
    notes.print("qemu-ring: stopping")


def _document(built: BuiltQemu) -> dict[str, object]:
    try:
        kvm: KvmCapabilities | None = probe_kvm()
    except HostError:
        kvm = None  # it can build without
    return {
        "schema": {"name": "qemu-ring.build", "version": 1},
        "host": {**probe_host().as_dict(), "kvm": None if kvm is None else kvm.as_dict()},
        "qemu": run(probe_qemu(built.path)).as_dict(),
        "cached": built.cached,
        "manifest": asdict(built.manifest),
    }


def _print_built(built: BuiltQemu) -> None:
    """The path alone on standard output, so that a script can use it."""
    made = built.manifest
    how = "built before" if built.cached else f"built in {made.seconds:.0f} s"
    patches = f"{len(made.patches)} patch{'' if len(made.patches) == 1 else 'es'}"
    notes.print(Text(f"QEMU {made.version} with {patches}, {how}:"))
    click.echo(str(built.path))


@contextmanager
def _progress() -> Iterator[Callable[[State], None]]:
    """A bar on standard error, gone when done; if that is no terminal, only a word of a wait."""
    with progress_bar(MofNCompleteColumn()) as bar:
        task = bar.add_task("starting", total=None)

        def show(state: State) -> None:
            if state.stage.startswith("waiting"):
                notes.print(Text(f"qemu-ring: {state.stage}"))
            bar.update(
                task, description=state.stage, completed=state.done, total=state.total or None
            )

        yield show
