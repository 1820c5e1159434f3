"""`qemu-ring run`: parsing and printing."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import click

from qemu_ring.cli.frame.attached import document
from qemu_ring.cli.frame.options import answer_timeout_option, json_option_that, qemu_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.cli.frame.running import run
from qemu_ring.errors import ExitStatus, QemuRingError
from qemu_ring.guestfile import (
    GuestDescription,
    GuestFileError,
    json_schema,
    load_guest,
    start_guest,
)
from qemu_ring.machine import find_qemu, named_socket, probe_qemu
from qemu_ring.migration.toggling.owner import GuestOwner

__all__ = ["run_command"]

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print_json(json_schema())
        context.exit()


@click.command("run")
@click.argument("guest", metavar="GUEST.yaml", type=click.Path(path_type=Path))
@click.option(
    "--qmp", metavar="SOCKET", type=click.Path(path_type=Path), help="QMP monitor, for others."
)
@qemu_option("QEMU to use; default: the one `build` made, else qemu-system-x86_64 on PATH.")
@click.option("--tracking", metavar="ring:SIZE|bitmap", help="In place of the description's.")
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="The same, any key.")
@click.option("--incoming", metavar="defer|URI", help="Wait for a migration, from URI or by QMP.")
@click.option("--paused", is_flag=True, help="Start with the vCPUs stopped.")
@click.option("--log-dir", type=_DIRECTORY, help="Keep QEMU's output, log and serial output there.")
@answer_timeout_option
@json_option_that("Print one JSON document once it is up.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of a description, and end.",
)
def run_command(
    guest: Path,
    qmp: Path | None,
    qemu: str | None,
    tracking: str | None,
    assignments: tuple[str, ...],
    incoming: str | None,
    paused: bool,
    log_dir: Path | None,
    as_json: bool,
) -> int:
    """Start the guest that a YAML file describes, and stay until it ends.

    One line tells that it is up. Ctrl-C or SIGTERM stops it.
    """
    if tracking is not None:
        assignments = (*assignments, f"tracking={tracking}")
    try:
        description = load_guest(guest, assignments)
    except GuestFileError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        return int(ExitStatus.USAGE)
    binary = find_qemu(qemu)
    run(
        _serve(
            description,
            binary,
            name=guest.name,
            qmp=qmp,
            incoming=incoming,
            paused=paused,
            log_directory=log_dir,
            as_json=as_json,
        )
    )
    return 0


async def _serve(
    description: GuestDescription,
    binary: Path,
    *,
    name: str,
    qmp: Path | None,
    incoming: str | None,
    paused: bool,
    log_directory: Path | None,
    as_json: bool,
) -> None:
    """Start the guest, say that it is up, and wait for its end.

    Raises:
        QemuRingError: it could not be started, or ended with an error.
    """
    async with AsyncExitStack() as stack:
        monitors = [await stack.enter_async_context(named_socket(qmp))] if qmp else []
        guest = await stack.enter_async_context(
            start_guest(
                description,
                binary,
                name=name,
                incoming=incoming,
                paused=paused,
                monitors=monitors,
                log_directory=log_directory,
            )
        )
        owner = GuestOwner(guest.machine, binary, monitors, log_directory)
        await stack.enter_async_context(owner)
        await stack.enter_async_context(owner.serve())
        state = "waits for a migration" if incoming else "paused" if paused else "runs"
        if not incoming and not paused:
            await guest.wait_up()
        if as_json:
            what = (await probe_qemu(binary)).as_dict()
            at = None if qmp is None else str(Path.cwd() / qmp)
            print_json(document("run", what, state=state, pid=guest.machine.pid, qmp=at))
        else:
            monitor = "" if qmp is None else f", QMP at {qmp}"
            click.echo(f"{name} {state}: pid {guest.machine.pid}{monitor}")
        machine = await owner.wait()
        if machine.returncode:
            raise await machine.explain(QemuRingError("it ended"))
