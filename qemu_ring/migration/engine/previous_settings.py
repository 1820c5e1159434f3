"""What was set in a QEMU before us: noted in that QEMU itself, so that it outlives our end.

The note is a `secret` object, which every QEMU has and which takes any text. Whoever comes next
finds it, puts back what was set, and removes what else was left there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qemu_ring.errors import UsageError
from qemu_ring.migration.channels.fdset import remove_left_files
from qemu_ring.migration.channels.passed_fds import take_back_fds
from qemu_ring.qmp import CommandError, Monitor, commands

__all__ = ["TLS_ID", "Controller", "PreviousSettings", "set_capabilities", "set_parameters"]

TLS_ID = "qemu-ring-tls"
"""The object that holds the certificates of a migration."""
_NOTE_ID = "qemu-ring-settings"
_TLS_PARAMETERS = {"tls-creds": "", "tls-hostname": ""}


@dataclass(frozen=True, slots=True)
class Controller:
    """A process that migrates guests.

    Args:
        boot: which boot of which host.
        process: its id.
        began: its start, in ticks since that boot; tells it from a later one with its id.
    """

    boot: str
    process: int
    began: int

    @classmethod
    def of(cls, process: int) -> Controller:
        """A process of this host."""
        return cls(_boot(), process, _began(process) or 0)

    @property
    def is_another_that_lives(self) -> bool:
        """Whether it is on this host, is not this process, and has not ended."""
        if self.boot != _boot() or self.process == os.getpid():
            return False
        return _began(self.process) == self.began


@dataclass(frozen=True, slots=True)
class PreviousSettings:
    """What was set in a QEMU for migration before a controller came.

    Args:
        capabilities: by name.
        parameters: by QMP name.
        controller: who came; None if not known.
        running: whether the guest ran.
    """

    capabilities: dict[str, bool] = field(default_factory=dict)
    parameters: dict[str, object] = field(default_factory=dict)
    controller: Controller | None = None
    running: bool = True

    @classmethod
    async def left(cls, monitor: Monitor) -> PreviousSettings | None:
        """What a controller that did not come to put it back has noted; None as a rule."""
        with suppress(CommandError):
            note = await commands.qom_get(monitor, f"/objects/{_NOTE_ID}", "data")
            with suppress(TypeError, KeyError, ValueError):  # somebody else's
                read = json.loads(str(note))
                controller = Controller(**read["controller"])
                settings = read["capabilities"], read["parameters"]
                return cls(*settings, controller, read["running"])
        # One that could leave no note.
        if (await commands.query_parameters(monitor)).get("tls-creds") == TLS_ID:
            return cls(parameters=dict(_TLS_PARAMETERS))
        return None

    @classmethod
    async def note(cls, monitor: Monitor) -> None:
        """Note what is set now. A QEMU that takes no note has none."""
        former = cls(
            await commands.query_capabilities(monitor),
            await commands.query_parameters(monitor),
            await asyncio.to_thread(Controller.of, os.getpid()),
            (await commands.query_status(monitor)).running,
        )
        with suppress(CommandError):
            properties = {"data": json.dumps(asdict(former))}
            await commands.object_add(monitor, "secret", _NOTE_ID, properties)

    @staticmethod
    async def forget(monitor: Monitor) -> None:
        """Remove the note."""
        with suppress(CommandError):
            await commands.object_del(monitor, _NOTE_ID)

    def require_left(self, name: str) -> None:
        """Check that nobody is at work who would be disturbed.

        Raises:
            UsageError: the controller lives.
        """
        if self.controller is not None and self.controller.is_another_that_lives:
            raise UsageError(
                f"another qemu-ring, process {self.controller.process}, is at work on {name}",
                hint="wait for its end, or end it",
            )

    async def put_back(self, monitor: Monitor) -> None:
        """Set it all as it was, as far as QEMU takes it, and remove what else was left."""
        with suppress(CommandError):
            await set_parameters(monitor, self.parameters)
        with suppress(CommandError):
            await set_capabilities(monitor, self.capabilities)
        with suppress(CommandError):
            await commands.object_del(monitor, TLS_ID)
        await take_back_fds(monitor)
        with suppress(CommandError):
            await remove_left_files(monitor)
        await self.forget(monitor)


async def set_parameters(monitor: Monitor, wanted: Mapping[str, object]) -> None:
    """Set those migration parameters, by QMP name, that the QEMU knows and that differ."""
    has = await commands.query_parameters(monitor)
    changed = {name: value for name, value in wanted.items() if name in has and has[name] != value}
    if changed:
        await monitor.execute("migrate-set-parameters", changed)


async def set_capabilities(monitor: Monitor, wanted: Mapping[str, bool]) -> None:
    """Set those migration capabilities that the QEMU knows and that differ."""
    has = await commands.query_capabilities(monitor)
    changed = {name: on for name, on in wanted.items() if name in has and has[name] != on}
    if changed:
        await commands.set_capabilities(monitor, changed)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _began(process: int) -> int | None:
    """When a process began, in ticks since boot; None if there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "XZ" else int(fields[18])
