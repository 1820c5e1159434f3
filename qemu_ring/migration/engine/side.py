"""One side of a migration: asked what it can do, set up, and set back."""

from __future__ import annotations

from collections.abc import Set
from contextlib import suppress
from pathlib import Path
from typing import Literal

from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.migration.engine.previous_settings import TLS_ID, PreviousSettings
from qemu_ring.migration.engine.settings import (
    MANAGED_CAPABILITIES,
    Settings,
    destination_settings,
    source_settings,
)
from qemu_ring.migration.plan import MigrationPlan
from qemu_ring.qmp import CommandError, Monitor, QmpError, Schema, commands

__all__ = ["Side", "require_plan", "require_support"]

_TLS_SECONDS = 120.0
"""QEMU computes Diffie-Hellman parameters before it answers: seconds, on a busy host many."""
_LEAVE_OUT = "use another QEMU, or leave that out"


class Side:
    """The source or the destination, with what was set there before.

    Attributes:
        role: what messages call it, such as "the source".
        monitor: its QMP session.
    """

    def __init__(self, role: str, monitor: Monitor) -> None:
        self.role = role
        self.monitor = monitor
        self._capabilities: dict[str, bool] = {}
        self._parameters: dict[str, object] = {}
        self._has_tls = False
        self._is_noted = False

    async def lacks(self, settings: Settings) -> list[str]:
        """Tell what of the settings this QEMU does not know, in words; nothing is set."""
        capabilities = await commands.query_capabilities(self.monitor)
        return _lacks(settings, capabilities.keys(), await self.monitor.schema())

    async def require_free(self) -> None:
        """Check that it does not migrate, and that nothing keeps it from it.

        Raises:
            UsageError: it migrates already.
            QemuUnsuitableError: something in it blocks migration; QEMU tells what.
        """
        info = await commands.query_migrate(self.monitor)
        if info.is_active:
            raise UsageError(
                f"{self.role} migrates already: {info.status}",
                hint="wait for its end, cancel it, or recover it: qemu-ring migrate --recover",
            )
        if info.blocked_reasons:
            raise QemuUnsuitableError(
                f"{self.role} cannot migrate: {'; '.join(info.blocked_reasons)}"
            )

    async def require_idle(self) -> None:
        """Check that a source may migrate now.

        Raises:
            UsageError: it is no source, or migrates already.
            QemuUnsuitableError: something in it blocks migration; QEMU tells what.
        """
        await self.require_free()
        state = (await commands.query_status(self.monitor)).status
        if state in ("inmigrate", "postmigrate"):
            hint = "name the running guest first, then the one that waits"
            if await PreviousSettings.left(self.monitor) is not None:
                hint = "its controller is gone: qemu-ring migrate --recover sees it to its end"
            raise UsageError(f"{self.role} cannot migrate, it is in state {state}", hint=hint)

    async def require_waiting(self) -> None:
        """Check that a destination waits for its migration.

        Raises:
            UsageError: it does not.
        """
        state = (await commands.query_status(self.monitor)).status
        listening = (await commands.query_migrate(self.monitor)).is_active
        if state != "inmigrate" or listening:
            what = "listens already" if listening else f"is in state {state}"
            again = "start it anew" if listening else "start it"
            raise UsageError(
                f"{self.role} does not wait to be told where to listen, it {what}",
                hint=f"{again} with -incoming defer",
            )

    async def set(self, settings: Settings) -> None:
        """Set capabilities and parameters, all that are managed and differ.

        What a controller left that did not come to clean up is put back first.

        Raises:
            QemuUnsuitableError: QEMU refused the mix of capabilities; in its words.
            UsageError: QEMU refused a parameter, in its words; or another controller is at work.
        """
        had = await commands.query_capabilities(self.monitor)
        managed = MANAGED_CAPABILITIES & had.keys()
        await self.set_capabilities({name: name in settings.capabilities for name in managed})
        parameters = dict(settings.parameters)
        known = (await self.monitor.schema()).command_arguments("migrate-set-parameters")
        if "mode" in known:
            parameters.setdefault("mode", "normal")
        await self.set_parameters(parameters)

    async def set_capabilities(self, states: dict[str, bool]) -> None:
        """Turn capabilities on and off where they differ, and remember what they were.

        Raises:
            QemuUnsuitableError: QEMU refused the mix of capabilities; in its words.
        """
        await self._note()
        had = await commands.query_capabilities(self.monitor)
        changed = {name: on for name, on in sorted(states.items()) if had.get(name) != on}
        if not changed:
            return
        # Before it is sent: when cancelled, it may be carried out all the same.
        self._capabilities = {name: had.get(name, False) for name in changed} | self._capabilities
        try:
            await commands.set_capabilities(self.monitor, changed)
        except CommandError as error:
            raise QemuUnsuitableError(
                f"{self.role} refuses it: {error.description}",
                hint=_what_it_lacks(error.description, states),
            ) from error

    async def set_parameters(self, parameters: dict[str, object]) -> None:
        """Set parameters by QMP name, and remember what they were before the first time.

        Raises:
            UsageError: QEMU refused a value; in its words.
        """
        if not parameters:
            return
        await self._note()
        had = await commands.query_parameters(self.monitor)
        before = {name: had[name] for name in parameters if name in had}
        self._parameters = before | self._parameters
        try:
            await self.monitor.execute("migrate-set-parameters", parameters)
        except CommandError as error:
            raise UsageError(f"{self.role} refuses it: {error.description}") from error

    async def use_tls(
        self, directory: Path, endpoint: Literal["client", "server"], hostname: str | None
    ) -> None:
        """Load certificates, and encrypt the next migration with them.

        Raises:
            QemuUnsuitableError: this QEMU was built without TLS, or cannot load them.
        """
        properties = {"dir": str(directory), "endpoint": endpoint, "verify-peer": True}
        await self._note()
        self._has_tls = True
        try:
            await commands.object_add(
                self.monitor, "tls-creds-x509", TLS_ID, properties, timeout=_TLS_SECONDS
            )
        except CommandError as error:
            raise QemuUnsuitableError(
                f"{self.role} cannot do TLS: {error.description}",
                hint="see that QEMU was built with gnutls, and the certificates' names",
            ) from error
        parameters: dict[str, object] = {"tls-creds": TLS_ID}
        if hostname is not None and endpoint == "client":
            parameters["tls-hostname"] = hostname
        await self.set_parameters(parameters)

    async def _note(self) -> None:
        """Note what is set, before the first change; what a controller left that is gone goes."""
        if self._is_noted:
            return
        left = await PreviousSettings.left(self.monitor)
        if left is not None:
            left.require_left(self.role)
            await left.put_back(self.monitor)
        self._is_noted = True  # before it is sent: when cancelled, it may be there all the same
        await PreviousSettings.note(self.monitor)

    async def restore(self) -> None:
        """Set everything back, as far as QEMU takes it; one that is gone needs nothing.

        One whose migration goes on keeps what it has: it needs that, and if it is postcopy, it
        may have to be recovered with it.
        """
        with suppress(QmpError):  # one that is gone, or hangs, is not asked again and again
            if not self._is_noted:
                return
            if (await commands.query_migrate(self.monitor)).is_active:
                return
            with suppress(CommandError):
                if self._parameters:
                    await self.monitor.execute("migrate-set-parameters", self._parameters)
            with suppress(CommandError):
                if self._capabilities:
                    await commands.set_capabilities(self.monitor, self._capabilities)
            with suppress(CommandError):
                if self._has_tls:
                    await commands.object_del(self.monitor, TLS_ID)
            await PreviousSettings.forget(self.monitor)
        self._is_noted = False
        self._parameters, self._capabilities, self._has_tls = {}, {}, False


def require_plan(plan: MigrationPlan, schema: Schema, qemu: str) -> None:
    """Check that a QEMU of which no guest runs yet knows what a plan asks for.

    Args:
        plan: of the migration.
        schema: of the QEMU.
        qemu: what the message calls it.

    Raises:
        QemuUnsuitableError: it does not; names all that is missing.
    """
    capabilities = schema.enum_values("migrate-set-capabilities", "capabilities", "capability")
    both = (source_settings(plan), destination_settings(plan))
    lacks = [one for settings in both for one in _lacks(settings, capabilities, schema)]
    if lacks:
        missing = ", ".join(dict.fromkeys(lacks))
        raise QemuUnsuitableError(f"{qemu} has {missing}", hint=_LEAVE_OUT)


def _lacks(settings: Settings, capabilities: Set[str], schema: Schema) -> list[str]:
    known = schema.command_arguments("migrate-set-parameters")
    missing = [f"no capability {name}" for name in sorted(settings.capabilities - capabilities)]
    for name, value in settings.parameters.items():
        values = schema.enum_values("migrate-set-parameters", name)
        if name not in known:
            missing.append(f"no parameter {name}")
        elif values and value not in values:
            missing.append(f"no {name} {value}, only {', '.join(sorted(values))}")
    return missing


async def require_support(sides: list[tuple[Side, Settings]]) -> None:
    """Check that each QEMU knows what its settings ask for; nothing is set.

    Raises:
        QemuUnsuitableError: one does not; names all that is missing, on both sides.
    """
    missing = []
    for side, settings in sides:
        lacks = await side.lacks(settings)
        if lacks:
            version = ".".join(map(str, side.monitor.version))
            missing.append(f"{side.role} (QEMU {version}) has {', '.join(lacks)}")
    if missing:
        raise QemuUnsuitableError("; ".join(missing), hint=_LEAVE_OUT)


def _what_it_lacks(refusal: str, states: dict[str, bool]) -> str:
    """What to do about capabilities that QEMU refuses."""
    if not (states.get("postcopy-ram") and "Postcopy is not supported" in refusal):
        return "leave out one of the two, or use another QEMU"
    may = "the right to userfaultfd (sysctl vm.unprivileged_userfaultfd=1)"
    if "serfault" in refusal:
        return f"give QEMU's user {may}, or migrate by precopy"
    if "supported:" in refusal:  # for a reason that follows
        return "migrate by precopy"
    # QEMU before 8.1 says what it lacks to its standard error alone.
    return (
        f"QEMU's own output says what it lacks: as a rule {may}, files of memory on tmpfs or "
        "hugetlbfs, or a vhost-user back end that knows postcopy"
    )
