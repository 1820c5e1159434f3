"""Network conditions between two QEMUs on one host: a network namespace of their own, and netem.

Both QEMUs are in the namespace and meet on its loopback device, so each direction passes
netem once. The namespace has no name: it is gone with the last process in it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

from qemu_ring.errors import HostError
from qemu_ring.experiment.plan.schema import NetworkPart

__all__ = ["enter_network"]

_CLONE_NEWNET = 0x40000000  # source: linux/sched.h
_PACKET_BYTES = 1500
_MOST_PACKETS = (1 << 32) - 1  # that a queue's limit can tell
_COMMAND_SECONDS = 60.0


def enter_network(part: NetworkPart) -> None:
    """Move this process into a namespace with these conditions; for a process of its own.

    It has to be the main thread that calls, before there are others. There is no way back.

    Raises:
        HostError: not root, or the kernel or the host lacks what it takes.
    """
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            raise HostError(
                f"{program} is not installed", hint="install it: apt-get install iproute2"
            )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise HostError(
            f"no network namespace can be made: {reason}", hint="network conditions need root"
        )
    # Packets of a real network's size: on loopback one packet could hold 64 KiB, or a chain.
    _run("ip", "link", "set", "lo", "mtu", str(_PACKET_BYTES), "gso_max_segs", "1", "up")
    _run("tc", "qdisc", "add", "dev", "lo", "root", "netem", *netem_arguments(part))


def netem_arguments(part: NetworkPart) -> list[str]:
    """The conditions in tc's words; its queue is long enough for what is under way."""
    arguments = []
    under_way = 0.0
    if part.latency_seconds:
        arguments += ["delay", f"{round(part.latency_seconds * 1e6)}us"]
        under_way = (part.bandwidth or 10**10 // 8) * part.latency_seconds / _PACKET_BYTES
    if part.loss_percent:
        arguments += ["loss", f"{part.loss_percent:.10g}%"]
    if part.bandwidth:
        arguments += ["rate", f"{part.bandwidth * 8}bit"]
    return [*arguments, "limit", str(min(1000 + round(2 * under_way), _MOST_PACKETS))]


def _run(*command: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
    )
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        hint = "the kernel needs sch_netem (modprobe sch_netem)" if "netem" in command else ""
        raise HostError(f"{command[0]} cannot set up the network: {said}", hint=hint)
