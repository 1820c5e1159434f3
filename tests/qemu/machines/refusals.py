"""Machines that QEMU cannot migrate: what whoever tries is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tests.qemu.machines.cells import PLAIN, Cell
from tests.qemu.machines.parts import NETS
from tests.qemu.machines.vhost_user import Logging
from tests.qemu.machines.ways import Kind

_VHOST_USER = replace(PLAIN, net=next(net for net in NETS if net.vhost_user))


@dataclass(frozen=True)
class Refusal:
    """A machine, a pattern that the refusal has to match, and the command's exit status."""

    name: str
    words: str
    exit_status: int
    cell: Cell = PLAIN
    arguments: tuple[str, ...] = ()
    logging: Logging = Logging.LOGS

    def is_met(self, said: str, exit_status: int) -> bool:
        return re.search(self.words, said) is not None and exit_status == self.exit_status


REFUSALS = (
    Refusal(
        "NVMe",
        "nvme",
        3,
        arguments=(
            *("-blockdev", "driver=null-co,node-name=null,size=1048576"),
            *("-device", "nvme,serial=1,drive=null"),
        ),
    ),
    Refusal(
        "memory of another guest",
        "ivshmem",
        3,
        arguments=(
            *("-object", "memory-backend-ram,id=theirs,share=on,size=1M"),
            *("-device", "ivshmem-plain,memdev=theirs,master=off"),
        ),
    ),
    Refusal("vhost-user without log", "vhost-user.* lacks", 3, _VHOST_USER, logging=Logging.CANNOT),
    Refusal(
        "vhost-user and postcopy",
        "Postcopy is not supported.*vhost-user back ?end",
        3,
        replace(_VHOST_USER, kind=Kind.POSTCOPY),
    ),
)
