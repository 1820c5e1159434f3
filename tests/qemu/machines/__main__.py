"""The matrix as a table in Markdown: ``python -m tests.qemu.machines [--full]`` migrates all."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from qemu_ring.machine import find_qemu, probe_qemu
from tests.qemu.machines.cells import HEADINGS, Cell, cells, others
from tests.qemu.machines.domains import to_and_fro, two_places
from tests.qemu.machines.host import has_huge_pages, lacks
from tests.qemu.machines.qemus import make_images
from tests.qemu.machines.refusals import REFUSALS, Refusal
from tests.qemu.machines.run import COMPLETED, Binaries, Outcome, Run
from tests.qemu.machines.ways import ROUTES, Controller, Route
from tests.shm import own_shm_folder

MIB = 1 << 20


async def main() -> int:
    parser = argparse.ArgumentParser(description="Migrates machines as people have them.")
    parser.add_argument("--full", action="store_true", help="every triple of choices, not pair")
    parser.add_argument("--only", default="", metavar="WORDS", help='such as "TCG-postcopy"')
    parser.add_argument(
        "--qemu", type=Path, default=Path("/usr/bin/qemu-system-x86_64"), help="the distribution's"
    )
    arguments = parser.parse_args()
    binaries = {"distribution": arguments.qemu, "patched": find_qemu()}
    for name, binary in binaries.items():
        print(f"{name}: {(await probe_qemu(binary)).version}")
    huge = has_huge_pages()
    print("2 MiB pages:", "yes" if huge else "the host has none")
    with tempfile.TemporaryDirectory(prefix="qemu-ring-") as images:
        await make_images(binaries["distribution"], Path(images), 4 * MIB)
        good = True
        heading("Migrated", *HEADINGS, "outcome", "moves", "switched", "MiB compared", "s")
        for cell in (*cells(full=arguments.full, huge_pages=huge), *others(full=arguments.full)):
            if arguments.only not in cell.id:
                continue
            outcome = await tried(cell, binaries, Path(images))
            good &= outcome.status == COMPLETED
            row(*cell.words, *figures(outcome))
        heading("Refused", "machine", "route", "controller", "what is said", "exit status")
        for refusal in REFUSALS:
            for route in ROUTES:
                for controller in (Controller.LIBRARY, Controller.COMMAND):
                    cell = replace(refusal.cell, route=route, controller=controller)
                    if arguments.only not in f"{refusal.name}-{cell.id}":
                        continue
                    outcome = await tried(cell, binaries, Path(images), refusal)
                    good &= refusal.is_met(outcome.status, outcome.exit_status)
                    what = (refusal.name, route.name, controller.value, outcome.status)
                    row(*what, str(int(outcome.exit_status)))
        heading("A domain of libvirt, to and fro", "route", "outcome")
        for route in ROUTES:
            if arguments.only in f"libvirt-{route.name}":
                said = await domain(route, binaries)
                good &= said == COMPLETED
                row(route.name, said)
    return 0 if good else 1


async def domain(route: Route, binaries: Binaries) -> str:
    """What became of it."""
    try:
        async with two_places(route, binaries) as (here, there):
            await to_and_fro(here, there)
    except Exception as error:  # noqa: BLE001 - it is a finding; the others go on
        return wrong(f"libvirt-{route.name}", error)
    return COMPLETED


def wrong(what: str, error: Exception) -> str:
    """Say what went wrong, and in one line for the table."""
    print(f"{what}: {error!r}", file=sys.stderr, flush=True)
    return f"WRONG: {' '.join(str(error).split())}"


async def tried(
    cell: Cell, binaries: Binaries, images: Path, refusal: Refusal | None = None
) -> Outcome:
    """What became of it; what went wrong, in one line, for a status."""
    if reason := lacks(cell):
        return Outcome(reason, 0, 0, 0, 0, 0.0)
    with own_shm_folder() as place:
        if refusal is None:
            run = Run(cell, binaries, images, place)
        else:
            more = {"logging": refusal.logging, "extra": refusal.arguments}
            run = Run(cell, binaries, images, place, **more)  # type: ignore[arg-type]
        try:
            return await run.run()
        except Exception as error:  # noqa: BLE001 - it is a finding; the others go on
            return Outcome(wrong(cell.id, error), 4, 0, 0, 0, 0.0)


def figures(outcome: Outcome) -> tuple[str, ...]:
    compared = f"{outcome.compared / MIB:.0f}"
    return (
        outcome.status,
        str(outcome.moves),
        str(outcome.switched or ""),
        compared,
        f"{outcome.seconds:.1f}",
    )


def heading(title: str, *names: str) -> None:
    print(f"\n## {title}\n")
    row(*names)
    row(*("---" for _ in names))


def row(*words: str) -> None:
    print("|", " | ".join(words), "|", flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
