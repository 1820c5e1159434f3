"""One run as a process of its own: its parameters as JSON on standard input, its record out.

``python -m qemu_ring.experiment.run.child``. SIGTERM ends it early; it still tells what it has.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from qemu_ring.errors import HostError
from qemu_ring.experiment.plan.schema import NetworkPart
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.measure import Measurement
from qemu_ring.experiment.run.network import enter_network
from qemu_ring.qmp import set_answer_timeout

__all__ = ["main"]


def main() -> None:
    """Read, run, print."""
    asked = json.load(sys.stdin)
    if asked.get("cpus"):
        os.sched_setaffinity(0, asked["cpus"])
    set_answer_timeout(asked["answer_timeout"])
    qemu = asked.get("qemu")
    measurement = Measurement(
        asked["specification"], None if qemu is None else Path(qemu), seed=asked["seed"]
    )
    try:
        network = asked["specification"].get("network")
        if network is not None:
            enter_network(NetworkPart.model_validate(network))
    except HostError as error:
        measurement.record |= {"status": Status.REFUSED.value, "error": str(error)}
    else:
        asyncio.run(_run(measurement))
    json.dump(_finite(measurement.record), sys.stdout)


async def _run(measurement: Measurement) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(measurement.run())
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


if __name__ == "__main__":
    main()
