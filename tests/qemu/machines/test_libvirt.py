"""A domain of one libvirt daemon is migrated to another's by `qemu-ring migrate`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.qemu.machines.domains import moved, to_and_fro, two_places
from tests.qemu.machines.run import Binaries, RefusedError, command
from tests.qemu.machines.ways import ROUTES, Route

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

USERFAULTFD = Path("/proc/sys/vm/unprivileged_userfaultfd")
FULL = pytest.mark.full
ONE, OTHER, BOTH, BACK = (route.name for route in ROUTES)


def routes(*, quick: tuple[str, ...]) -> pytest.MarkDecorator:
    marks = {name: [] if name in quick else [FULL] for name in (ONE, OTHER, BOTH, BACK)}
    found = [pytest.param(route, id=route.name, marks=marks[route.name]) for route in ROUTES]
    return pytest.mark.parametrize("route", found)


@routes(quick=(OTHER, BOTH))
async def test_domain_goes_to_and_fro(route: Route, binaries: Binaries) -> None:
    async with two_places(route, binaries) as (here, there):
        await to_and_fro(here, there)


@routes(quick=(ONE,))
async def test_postcopy_needs_what_its_user_has(route: Route, binaries: Binaries) -> None:
    options = ("--kind", "postcopy")
    async with two_places(route, binaries) as (here, there):
        await here.create(incoming=False)
        await here.goes_on()
        if may_use_userfaultfd():
            await moved(here, there, *options)
            return
        await there.create(incoming=True)
        with pytest.raises(RefusedError, match=r"unprivileged_userfaultfd=1") as caught:
            await command(str(here.monitor), str(there.monitor), *options)
        assert caught.value.exit_status == 3
        await here.goes_on(await here.writes())


def may_use_userfaultfd() -> bool:
    return USERFAULTFD.read_text().strip() == "1"


@routes(quick=(OTHER,))
async def test_domain_is_saved_and_restored(
    route: Route, binaries: Binaries, tmp_path: Path
) -> None:
    """To a file that its user could not make where it is."""
    saved = str(tmp_path / "saved")
    async with two_places(route, binaries) as (here, there):
        await here.create(incoming=False)
        await here.goes_on()
        await here.stop_if_it_must()
        await command(str(here.monitor), "--to-file", saved)
        count = await here.is_left()
        await there.create(incoming=True)
        await command(str(there.monitor), "--from-file", saved)
        await there.goes_on(count, start=here.stops)
