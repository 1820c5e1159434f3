"""The guest that is tortured, and the QEMUs that it goes through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Final

from qemu_ring.guest import Stream, WorkloadControl
from qemu_ring.machine import Device, Machine
from qemu_ring.memslot import Layout, MemslotTestdev, PciSlots
from qemu_ring.prove.stage import SLOT_ADDRESS, WINDOWS, Memory, Plan
from qemu_ring.qmp import commands
from qemu_ring.torture.model import MAX_PLUGGED
from qemu_ring.verify import Block

__all__ = ["GuestQemu", "Setup"]

_CPU: Final = "qemu64-x86_64-cpu"
"""What the machine types have where no CPU is named."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What all QEMUs of a torture have in common.

    Args:
        binary: the QEMU.
        plan: the shape of the guest.
        windows: whether it has the test device.
        log_directory: where logs are kept when a QEMU ends; None for nowhere.
        trace: patterns of trace events to log.
    """

    binary: Path
    plan: Plan
    windows: bool
    log_directory: Path | None = None
    trace: tuple[str, ...] = ()
    _numbers: Iterator[int] = field(default_factory=lambda: count(1), repr=False, compare=False)

    async def start(self, *, plugged: int = 0, waiting: bool = False) -> GuestQemu:
        """Start a QEMU, for the guest, or to wait for it; `GuestQemu.close` ends it.

        Args:
            plugged: vCPUs that were plugged.
            waiting: whether the guest is to come from another QEMU.

        Raises:
            MachineError: it did not start.
        """
        vcpus = len(self.plan.idle)
        sockets = vcpus + MAX_PLUGGED
        stack = AsyncExitStack()
        try:
            memory = stack.enter_context(Memory(self.plan.sizes, None))
            described = self.plan.describe(memory, destination=waiting)
            cpus = [Device(_CPU, _socket(vcpus + index)) for index in range(plugged)]
            description = replace(
                described,
                devices=(*cpus, *described.devices),
                trace=self.trace,
                # What comes later counts.
                extra=("-smp", f"{vcpus},maxcpus={sockets},sockets={sockets},cores=1,threads=1"),
            )
            machine = await stack.enter_async_context(
                await Machine.start(
                    self.binary,
                    description,
                    name=f"QEMU {next(self._numbers)}",
                    log_directory=self.log_directory,
                )
            )
        except BaseException:
            await stack.aclose()
            raise
        return GuestQemu(self, machine, memory, stack)


@dataclass(slots=True)
class GuestQemu:
    """A QEMU that has the guest, or waits for it.

    Attributes:
        machine: the QEMU.
        memory: of the guest here.
        control: its workload.
        slots: its PCI devices' memory, to take away.
        device: its test device; not to be used where there is none.
    """

    setup: Setup
    machine: Machine
    memory: Memory
    _stack: AsyncExitStack
    _control: WorkloadControl | None = None
    _slots: PciSlots | None = None
    _device: MemslotTestdev | None = None
    plugged: int = 0

    @property
    def control(self) -> WorkloadControl:
        """The guest's workload."""
        assert self._control is not None
        return self._control

    @property
    def slots(self) -> PciSlots:
        """Its PCI devices' memory."""
        assert self._slots is not None
        return self._slots

    @property
    def device(self) -> MemslotTestdev:
        """Its test device."""
        assert self._device is not None
        return self._device

    @property
    def removals(self) -> int:
        """Memslots removed here."""
        return self.slots.removals + self.device.removals

    async def boot(self) -> None:
        """Wait until the guest that was started here writes; map all that can go away."""
        await self.began_anew()
        self._device = MemslotTestdev(self.machine.monitor)
        if self.setup.windows:
            await self.device.map(Layout(WINDOWS))

    async def began_anew(self) -> None:
        """Wait until the firmware has started, and map the PCI devices' memory."""
        plan, monitor = self.setup.plan, self.machine.monitor
        self._use(plan.workload.streams)
        await self.control.wait_writing()
        before = 0 if self._slots is None else self._slots.removals
        self._slots = PciSlots(monitor, plan.devices(self.memory))
        self._slots.removals = before
        for name, address in SLOT_ADDRESS.items():
            await self._slots.add(name, address)

    def arrive(self, former: GuestQemu) -> None:
        """Take over the guest that has come from another QEMU."""
        monitor = self.machine.monitor
        self._use(former.control.workload.streams)
        self._slots = former.slots.moved(monitor)
        self._device = former.device.moved(monitor)

    async def plug(self) -> None:
        """Plug a vCPU."""
        number = len(self.setup.plan.idle) + self.plugged
        await self.machine.monitor.execute("device_add", {"driver": _CPU, **_socket(number)})
        self.plugged += 1

    def blocks(self, destination: GuestQemu) -> list[Block]:
        """Memory to compare after the guest was migrated there."""
        return self.memory.blocks(destination.memory)

    async def is_running(self) -> bool:
        """Whether the vCPUs run."""
        return (await commands.query_status(self.machine.monitor)).running

    async def close(self) -> None:
        """End the QEMU, and let its memory go."""
        await self._stack.aclose()

    def _use(self, streams: tuple[Stream, ...]) -> None:
        if self._control is not None:
            self._control.close()
        else:
            self._stack.callback(lambda: self.control.close())
        plan = self.setup.plan
        workload = replace(plan.workload, streams=streams)
        self._control = WorkloadControl(self.memory.files["ram"].fd, workload, plan.tsc_hz)


def _socket(number: int) -> dict[str, str | int]:
    """The properties of a vCPU that is plugged."""
    return {"id": f"vcpu{number}", "socket-id": number, "core-id": 0, "thread-id": 0}
