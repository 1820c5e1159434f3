"""Machines as people have them, migrated between QEMUs; those that cannot be are refused.

By default every pair of choices occurs, with --full every triple. The same as a table:
`python -m tests.qemu.machines`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.qemu.machines.cells import Cell, cells, others
from tests.qemu.machines.host import has_huge_pages, lacks
from tests.qemu.machines.refusals import REFUSALS, Refusal
from tests.qemu.machines.run import COMPLETED, Binaries, Run
from tests.qemu.machines.vhost_user import Logging
from tests.qemu.machines.ways import ROUTES, Controller, Kind, Route

pytestmark = pytest.mark.timeout(600)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = bool(metafunc.config.getoption("--full", default=False))
    if metafunc.function is test_machine:
        metafunc.parametrize(
            "cell", [_case(cell) for cell in cells(full=full, huge_pages=has_huge_pages())]
        )
    if metafunc.function is test_other_programs:
        metafunc.parametrize("cell", [_case(cell) for cell in others(full=full)])


def _case(cell: Cell) -> object:
    marks = [getattr(pytest.mark, cell.acceleration.marker)]
    if reason := lacks(cell):
        marks.append(pytest.mark.skip(reason=reason))
    return pytest.param(cell, id=cell.id, marks=marks)


async def test_machine(cell: Cell, binaries: Binaries, images: Path, folder: Path) -> None:
    outcome = await Run(cell, binaries, images, folder).run()
    assert outcome.status == COMPLETED
    assert outcome.moves == cell.trip.moves
    assert outcome.compared >= cell.program.ram * cell.trip.moves * 0.99


async def test_other_programs(cell: Cell, binaries: Binaries, images: Path, folder: Path) -> None:
    outcome = await Run(cell, binaries, images, folder).run()
    assert (outcome.status, outcome.moves) == (COMPLETED, cell.trip.moves)


@pytest.mark.kvm
@pytest.mark.pairwise
@pytest.mark.parametrize(
    "controller", [Controller.LIBRARY, Controller.COMMAND], ids=lambda c: c.value
)
@pytest.mark.parametrize("route", ROUTES[:2], ids=lambda route: route.name)
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
async def test_refused(
    refusal: Refusal,
    route: Route,
    controller: Controller,
    binaries: Binaries,
    images: Path,
    folder: Path,
) -> None:
    """And the guest goes on where it was."""
    cell = replace(refusal.cell, route=route, controller=controller)
    run = Run(cell, binaries, images, folder, logging=refusal.logging, extra=refusal.arguments)
    outcome = await run.run()
    assert refusal.is_met(outcome.status, outcome.exit_status), outcome
    assert outcome.moves == 0


@pytest.mark.kvm
@pytest.mark.parametrize("route", ROUTES[:2], ids=lambda route: route.name)
async def test_back_end_that_does_not_log_is_found_out(
    route: Route, binaries: Binaries, images: Path, folder: Path
) -> None:
    """A comparison that could not fail would say nothing of those that log."""
    (cell,) = [one.cell for one in REFUSALS if one.logging is Logging.CANNOT]
    cell = replace(cell, route=route, kind=Kind.PRECOPY, controller=Controller.LIBRARY)
    run = Run(cell, binaries, images, folder, logging=Logging.FORGETS)
    with pytest.raises(AssertionError, match="pages differ"):
        await run.run()
