"""Network conditions: in tc's words, in a namespace of their own, and what is told without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qemu_ring.experiment.plan.schema import NetworkPart
from qemu_ring.experiment.run.network import netem_arguments

SCRIPT = """\
import os
from qemu_ring.errors import HostError
from qemu_ring.experiment.run.network import enter_network
from qemu_ring.experiment.plan.schema import NetworkPart
before = os.readlink("/proc/self/ns/net")
try:
    enter_network(NetworkPart(bandwidth=1000, latency_seconds=0.5, loss_percent=1.5))
except HostError as error:
    print(error)
else:
    print("moved" if os.readlink("/proc/self/ns/net") != before else "stayed")
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (NetworkPart(), "limit 1000"),
        (NetworkPart(bandwidth=125_000_000), "rate 1000000000bit limit 1000"),
        (NetworkPart(loss_percent=0.5), "loss 0.5% limit 1000"),
        # 125 MB/s for 0.1 s are 8333 packets under way.
        (
            NetworkPart(bandwidth=125_000_000, latency_seconds=0.1),
            "delay 100000us rate 1000000000bit limit 17667",
        ),
    ],
)
def test_conditions_in_the_words_of_tc(part: NetworkPart, words: str) -> None:
    assert " ".join(netem_arguments(part)) == words


def enter(path: Path, programs: dict[str, str]) -> str:
    """Enter a network with these programs alone on PATH; what was printed."""
    for name, text in programs.items():
        (path / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {path}/calls\n{text}\n')
        (path / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_root
def test_a_namespace_of_its_own(tmp_path: Path) -> None:
    assert enter(tmp_path, {"ip": "", "tc": ""}) == "moved"
    assert (tmp_path / "calls").read_text().splitlines() == [
        "ip link set lo mtu 1500 gso_max_segs 1 up",
        "tc qdisc add dev lo root netem delay 500000us loss 1.5% rate 8000bit limit 1001",
    ]


@needs_root
def test_kernel_without_netem(tmp_path: Path) -> None:
    said = enter(tmp_path, {"ip": "", "tc": "echo Error: no such qdisc >&2; exit 2"})
    assert said == (
        "tc cannot set up the network: Error: no such qdisc; "
        "the kernel needs sch_netem (modprobe sch_netem)"
    )


def test_without_iproute2(tmp_path: Path) -> None:
    assert (
        enter(tmp_path, {"ip": ""}) == "tc is not installed; install it: apt-get install iproute2"
    )
