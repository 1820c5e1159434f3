"""`qemu-ring doctor`: parsing and printing."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qemu_ring.cli.frame.options import answer_timeout_option, json_option, qemu_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.cli.frame.running import run
from qemu_ring.errors import ExitStatus
from qemu_ring.machine import Diagnosis, Finding, diagnose

__all__ = ["doctor"]

_STYLE = {Finding.OK: "green", Finding.MISSING: "bold red", Finding.ABSENT: "yellow"}


@click.command()
@qemu_option("QEMU to look at; default: the one `build` made, else the first on PATH.")
@answer_timeout_option
@json_option
def doctor(qemu: str | None, as_json: bool) -> int:
    """Tell what this host and this QEMU can do.

    For each thing missing it tells how to get it. Exits with 3 if something is missing that
    `prove` needs.
    """
    diagnosis = run(diagnose(qemu))
    if as_json:
        print_json(_document(diagnosis))
    else:
        _print_table(diagnosis)
    return int(ExitStatus.GOOD if diagnosis.healthy else ExitStatus.HOST)


def _document(diagnosis: Diagnosis) -> dict[str, object]:
    kvm, qemu = diagnosis.kvm, diagnosis.qemu
    return {
        "schema": {"name": "qemu-ring.doctor", "version": 1},
        "host": {**diagnosis.host.as_dict(), "kvm": None if kvm is None else kvm.as_dict()},
        "qemu": None if qemu is None else qemu.as_dict(),
        "healthy": diagnosis.healthy,
        "checks": [
            {
                "name": check.name,
                "finding": check.finding.value,
                "detail": check.detail,
                "remedy": check.remedy,
            }
            for check in diagnosis.checks
        ],
    }


def _print_table(diagnosis: Diagnosis) -> None:
    console = Console(highlight=False)
    host = diagnosis.host
    console.print(Text(f"Linux {host.kernel}, {host.cpus} CPUs, {host.cpu_model}"))
    console.print(Text(f"KVM's vendor module: {host.kvm_in_words}"))
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in diagnosis.checks:
        found = Text(check.detail)
        if check.remedy:
            found.append(f"\n→ {check.remedy}", style="bold")
        mark = Text(check.finding.value, style=_STYLE[check.finding])
        table.add_row(mark, Text(check.name), found)
    console.print(table)
    console.print()
    if diagnosis.healthy:
        console.print("All that `qemu-ring prove` needs is here.")
    else:
        console.print("Something is missing that `qemu-ring prove` needs: see above.")
