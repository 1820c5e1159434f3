"""The machines of the matrix, and which of them are tried when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from tests.qemu.machines.covering import covering
from tests.qemu.machines.parts import (
    BOARDS,
    DISKS,
    DISPLAYS,
    IMAGES,
    MEMORIES,
    NETS,
    OTHERS,
    PLUGS,
    Board,
    Devices,
    Disk,
    Memory,
    Net,
    Plug,
)
from tests.qemu.machines.programs import FIRMWARE, LINUX, SEABIOS, Program
from tests.qemu.machines.ways import (
    ACCELERATIONS,
    ROUTES,
    TRIPS,
    Acceleration,
    Controller,
    Kind,
    Route,
    Trip,
)


@dataclass(frozen=True)
class Cell:
    """One machine, and how it is migrated."""

    route: Route
    acceleration: Acceleration
    kind: Kind
    controller: Controller
    trip: Trip
    board: Board
    memory: Memory
    disk: Disk
    image: str
    net: Net
    display: Devices
    other: Devices
    plug: Plug
    program: Program = FIRMWARE

    @property
    def words(self) -> list[str]:
        """Each choice in words, in order."""
        return [_words(getattr(self, one.name)) for one in fields(self)]

    @property
    def id(self) -> str:
        return "-".join(word.replace(" ", "_") for word in self.words)


HEADINGS = [one.name for one in fields(Cell)]
AXES: dict[str, Sequence[Any]] = {
    "route": ROUTES,
    "acceleration": ACCELERATIONS,
    "kind": tuple(Kind),
    "controller": tuple(Controller),
    "trip": TRIPS,
    "board": BOARDS,
    "memory": MEMORIES,
    "disk": DISKS,
    "image": IMAGES,
    "net": NETS,
    "display": DISPLAYS,
    "other": OTHERS,
    "plug": PLUGS,
}


def _words(choice: Any) -> str:
    if isinstance(choice, str):
        return choice
    return str(choice.value if isinstance(choice, Kind | Controller) else choice.name)


def allowed(chosen: Mapping[str, Any]) -> bool:
    """Whether these choices can be made together. What only is refused is in `refusals`."""
    memory, net = chosen.get("memory"), chosen.get("net")
    controller, kind = chosen.get("controller"), chosen.get("kind")
    if net is not None and net.vhost_user:
        if memory is not None and not memory.shared:
            return False  # the back end could not map it
        if kind is Kind.POSTCOPY:
            return False  # our back end cannot
    # A file has no destination to compare with.
    return not (controller is Controller.VERIFY and kind is Kind.FILE)


@cache
def cells(*, full: bool, huge_pages: bool) -> list[Cell]:
    """Cells of our firmware, in which every allowed pair, or triple, of choices occurs.

    Args:
        full: triples.
        huge_pages: whether the host has 2 MiB pages to spare.
    """
    axes = dict(AXES)
    axes["memory"] = [memory for memory in MEMORIES if huge_pages or not memory.huge]
    return [Cell(**one) for one in covering(axes, allowed, strength=3 if full else 2)]


TCG = next(one for one in ACCELERATIONS if not one.is_kvm)
PLAIN = Cell(
    ROUTES[0],
    ACCELERATIONS[0],
    Kind.PRECOPY,
    Controller.LIBRARY,
    TRIPS[0],
    BOARDS[0],
    MEMORIES[0],
    DISKS[0],
    IMAGES[1],
    NETS[0],
    DISPLAYS[0],
    OTHERS[0],
    PLUGS[0],
)
"""What a cell is that has nothing special."""


def others(*, full: bool) -> list[Cell]:
    """Cells of other programs than our firmware, under TCG: each once, or in all ways."""
    plain = replace(PLAIN, acceleration=TCG, controller=Controller.COMMAND)
    q35, flash = BOARDS[1:]
    _, other, both, back = ROUTES
    if not full:
        return [
            replace(plain, program=SEABIOS, route=both, trip=TRIPS[1]),
            replace(plain, program=LINUX, route=other, kind=Kind.POSTCOPY),
            replace(plain, program=LINUX, route=back, board=flash),
        ]
    boards = {SEABIOS: (BOARDS[0], q35), LINUX: BOARDS}
    return [
        replace(plain, program=program, route=route, board=board, kind=kind, trip=TRIPS[1])
        for program, its in boards.items()
        for route in ROUTES
        for board in its
        for kind in Kind
    ]
