"""An experiment resolved: its cells, the order of its runs, and what they will take."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qemu_ring.experiment.plan.parameters import Scalar

__all__ = [
    "Cell",
    "ExperimentPlan",
    "Run",
    "canonical",
    "digest",
    "digest_of_parts",
    "run_seed",
]

_QEMU_BANDWIDTH = 128 << 20
_START_SECONDS = 0.8  # both QEMUs up, down, and the interpreter of the run's process
_SCAN_BYTES = 2 << 30  # a second: zero pages found, memory compared


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of everything that is varied.

    Args:
        id: short hash of what it is made of, the same wherever the same is asked for.
        name: what varies, in words.
        axes: the value's label by axis.
        parameters: all that says what it is.
        specification: what the process that runs it is told.
    """

    id: str
    name: str
    axes: Mapping[str, str]
    parameters: Mapping[str, Scalar]
    specification: Mapping[str, Any]

    @property
    def time_limit(self) -> float:
        """Seconds that a run may take."""
        return float(self.specification["time-limit"])

    @property
    def guests_bytes(self) -> int:
        """Memory of both guests, and about that of their QEMUs."""
        return 2 * (int(self.parameters["memory_bytes"] or 0) + (64 << 20))

    @property
    def cpus(self) -> int:
        """CPUs that a run keeps busy: the vCPUs, and QEMU's migration."""
        return int(self.parameters["vcpus"] or 1) + 1

    def estimate_seconds(self) -> float:
        """About how long a run takes; no more than its limit.

        A guest that dirties d of the b bytes that can be sent in a second takes about
        1 / (1 - d/b) times as long as its first pass.
        """
        of = self.parameters
        memory = int(of["memory_bytes"] or 0)
        written = int(of.get("workload.bytes") or 0) or memory
        bandwidths = (of["max_bandwidth"], of.get("network.bandwidth"))
        bandwidth = min((int(b) for b in bandwidths if b), default=_QEMU_BANDWIDTH)
        rate = of.get("workload.pages_per_second")
        dirty = min(1.0, float(rate) * 4096 / bandwidth) if rate else 1.0
        passes = min(20.0, 1 / max(1 - dirty, 0.05))
        if of["migration"] == "postcopy":
            passes = min(passes, 2.0)
        seconds = written / bandwidth * passes + memory / _SCAN_BYTES
        seconds += float(self.specification["settle-seconds"]) + _START_SECONDS
        if self.specification["verify"]:
            seconds += memory / _SCAN_BYTES
        return min(seconds, self.time_limit)

    def as_dict(self) -> dict[str, Any]:
        """For experiment.json."""
        return {
            "id": self.id,
            "name": self.name,
            "axes": dict(self.axes),
            "parameters": dict(self.parameters),
            "specification": dict(self.specification),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        """From experiment.json."""
        return cls(
            data["id"], data["name"], data["axes"], data["parameters"], data["specification"]
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a cell.

    Args:
        cell: which, by its id.
        repeat: from 0, warm-up runs first.
        seed: of its workload.
    """

    cell: str
    repeat: int
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """What no other run of the experiment has."""
        return self.cell, self.repeat


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentPlan:
    """All runs of an experiment.

    Args:
        name: of the experiment.
        description: in words.
        source: the YAML text.
        cells: what is compared.
        repeats: measured runs of each cell.
        warm_up: runs of each before those.
        seed: what all seeds are made from.
        order: how the runs follow each other.
        stop: when to begin no more: failures-in-a-row, seconds.
    """

    name: str
    description: str
    source: str
    cells: tuple[Cell, ...]
    repeats: int
    warm_up: int
    seed: int
    order: Literal["interleaved", "random", "sequential"]
    stop: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """All runs, in order; every warm-up run comes before the measured ones of its cell."""
        turns = range(self.warm_up + self.repeats)
        seeds = [run_seed(self.seed, turn) for turn in turns]
        if self.order == "sequential":
            return [Run(cell.id, turn, seeds[turn]) for cell in self.cells for turn in turns]
        dice = random.Random(self.seed) if self.order == "random" else None  # noqa: S311
        runs = []
        for turn in turns:
            part = [Run(cell.id, turn, seeds[turn]) for cell in self.cells]
            if dice is not None:
                dice.shuffle(part)  # each turn for itself: a drift of the host meets all cells
            runs += part
        return runs

    @property
    def sha256(self) -> str:
        """Of all that decides what is run, in hex."""
        return digest(
            {
                "cells": [cell.id for cell in self.cells],
                "order": [[run.cell, run.repeat, run.seed] for run in self.runs],
                "warm-up": self.warm_up,
            }
        )

    def estimate_seconds(self) -> Iterator[float]:
        """For each run in order."""
        seconds = {cell.id: cell.estimate_seconds() for cell in self.cells}
        return (seconds[run.cell] for run in self.runs)


def run_seed(seed: int, repeat: int) -> int:
    """The seed of a repeat: the same for all cells, so that they meet the same workload."""
    text = f"{seed}/{repeat}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") | 1


def digest(content: Any) -> str:
    """SHA-256, in hex, of data in JSON's canonical form."""
    return hashlib.sha256(canonical(content).encode("utf-8", "surrogateescape")).hexdigest()


def canonical(content: Any) -> str:
    """Data as JSON in its one form: keys sorted, no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of_parts(parts: Mapping[str, str]) -> str:
    """What `digest` gives of a mapping, whose values are canonical JSON already."""
    pairs = ",".join(f"{canonical(key)}:{parts[key]}" for key in sorted(parts))
    return hashlib.sha256(f"{{{pairs}}}".encode()).hexdigest()
