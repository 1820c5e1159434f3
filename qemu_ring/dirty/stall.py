"""vCPUs that KVM does not let run, because their dirty ring is full and stays full.

A KVM that pushes entries over those that nobody has read yet, as some do while they emulate a
guest's kernel, leaves QEMU waiting at a place in the ring where no entry will ever be. From then
on the vCPU leaves KVM_RUN as soon as it enters it, for ever, and nothing is harvested. KVM's
statistics show that on any QEMU that has query-stats: KVM_RUN is entered, and the guest is not.
"""

from __future__ import annotations

from typing import Final

from qemu_ring.dirty.running import TrackingMode, query_tracking
from qemu_ring.qmp import CommandError, Monitor, QmpModel, commands

__all__ = ["STALL_ADVICE", "StallWatch", "stall_message"]

_ENTERED: Final = "fpu_reload"
"""How often KVM_RUN was entered."""
_RAN: Final = ("exits", "insn_emulation")
"""How often the guest was left, and how many of its instructions KVM carried out."""
_OFTEN: Final = 100
"""More than the times that a vCPU is kicked before it gets to run."""

STALL_ADVICE: Final = (
    "only a reset or a new start helps; start such a guest with the bitmap, or with the QEMU "
    "that `qemu-ring build` makes"
)


class _Value(QmpModel):
    name: str
    value: int | bool | list[int]


class _Stats(QmpModel):
    """Of query-stats: what one vCPU's KVM has counted."""

    qom_path: str | None = None
    stats: tuple[_Value, ...]

    def count(self, name: str) -> int:
        values = [one.value for one in self.stats if one.name == name]
        return values[0] if values and isinstance(values[0], int) else 0


class StallWatch:
    """Finds the vCPUs that do not run although they are meant to, from one call to the next."""

    def __init__(self) -> None:
        self._before: dict[int, _Stats] = {}

    async def poll(self, monitor: Monitor) -> tuple[int, ...]:
        """Number the vCPUs that have made no progress since the last call.

        Those of which that is not known are not among them: the first time, where QEMU does
        not tell (before 7.1), and where a vCPU was not scheduled often enough to tell.

        Raises:
            QmpError: as in `Monitor.call`.
        """
        before, self._before = self._before, await _statistics(monitor)
        stalled = [
            vcpu
            for vcpu, now in self._before.items()
            if vcpu in before and _is_stalled(before[vcpu], now)
        ]
        if not stalled or (await query_tracking(monitor)).mode is not TrackingMode.RING:
            return ()
        return tuple(sorted(stalled))


def stall_message(vcpus: tuple[int, ...]) -> str:
    """Say of stalled vCPUs what is the matter with them."""
    listed = ", ".join(map(str, vcpus))
    they = f"vCPU {listed} does" if len(vcpus) == 1 else f"vCPUs {listed} do"
    return (
        f"{they} not run: KVM finds the dirty ring full, QEMU finds no entry in it, and that "
        "does not end by itself (KVM has overrun the ring)"
    )


async def _statistics(monitor: Monitor) -> dict[int, _Stats]:
    """KVM's statistics by vCPU; of none where QEMU does not have them."""
    if not (await monitor.schema()).has_command("query-stats"):
        return {}
    paths = {cpu.qom_path: cpu.cpu_index for cpu in await commands.query_cpus_fast(monitor)}
    arguments = {
        "target": "vcpu",
        "vcpus": list(paths),
        "providers": [{"provider": "kvm", "names": [_ENTERED, *_RAN]}],
    }
    try:
        listed = await monitor.call("query-stats", list[_Stats], arguments)
    except CommandError:  # a kernel before 5.14 has none
        return {}
    return {paths[one.qom_path]: one for one in listed if one.qom_path in paths}


def _is_stalled(before: _Stats, now: _Stats) -> bool:
    entered = now.count(_ENTERED) - before.count(_ENTERED)
    return entered >= _OFTEN and all(now.count(name) == before.count(name) for name in _RAN)
