"""Results made up by the contract of the files, to test the report with; nothing was measured."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from qemu_ring.experiment import Results, read_results

Record: TypeAlias = dict[str, Any]
MakeResults: TypeAlias = Callable[..., Path]

MIB = 1 << 20
POLICIES = {"best-effort": 1.0, "quiesce": 1.06, "tombstone": 1.02}


def cell_id(parameters: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:10]


def words(key: str, value: object) -> str:
    if isinstance(value, int) and key == "memory_bytes":
        return f"{value // MIB} MiB"
    return f"{key} {value}"


def make_cells(axes: Mapping[str, Sequence[object]], fixed: Mapping[str, object]) -> list[Record]:
    cells = []
    for values in itertools.product(*axes.values()):
        varied = dict(zip(axes, values, strict=True))
        parameters = {**fixed, **varied}
        name = ", ".join(words(key, value) for key, value in varied.items())
        cells.append(
            {
                "id": cell_id(parameters),
                "name": name,
                "axes": {key: str(value) for key, value in varied.items()},
                "parameters": parameters,
                "specification": {"verify": True, "settle-seconds": 1.0, "time-limit": 120.0},
            }
        )
    return cells


def make_migration(rng: random.Random, scale: float, memory: int) -> Record:
    bandwidth = 180e6 * rng.uniform(0.95, 1.05)
    dirty = 70e6 * rng.uniform(0.9, 1.1)
    at, left, sent, iterations, samples = 0.02, float(memory), 0.0, [], []
    for number in range(1, 9):
        took = left / bandwidth * scale
        iterations.append(
            {
                "number": number,
                "at_seconds": at,
                "seconds": took,
                "bytes": int(left),
                "dirty_rate": int(dirty) if number > 1 else None,
                "bandwidth": bandwidth,
                "remaining": int(left),
                "expected_downtime_seconds": left / bandwidth,
                "ring_full_seconds": None,
            }
        )
        samples += [
            {
                "at_seconds": at + took * step / 12,
                "remaining": int(left * (1 - step / 12)),
                "bandwidth": bandwidth * rng.uniform(0.9, 1.1),
                "ring_fill": int(4096 * abs(rng.gauss(0.2 + step / 24, 0.05))) % 4097,
            }
            for step in range(12)
        ]
        at, sent = at + took, sent + left
        left = max(dirty * took * rng.uniform(0.9, 1.0), 2e6)
        if left < 4e6:
            break
    downtime = left / bandwidth + rng.uniform(0.004, 0.009) * scale
    return {
        "seconds": at + downtime,
        "downtime_seconds": downtime,
        "qemu_downtime_seconds": round(downtime, 3),
        "guest_downtime_seconds": downtime + rng.uniform(0.001, 0.002),
        "setup_seconds": 0.012,
        "bytes": int(sent),
        "iterations": iterations,
        "samples": samples,
    }


def make_run(cell: Record, repeat: int, rng: random.Random, **changes: object) -> Record:
    parameters = cell["parameters"]
    memory = int(parameters.get("memory_bytes", 256 * MIB))
    scale = POLICIES.get(str(parameters.get("policy")), 1.0)
    migration = make_migration(rng, scale * rng.uniform(0.97, 1.03), memory)
    removals = [
        {
            "at_seconds": rng.uniform(0, migration["seconds"]),
            "shape": rng.choice(["pci", "split", "punch"]),
            "count": rng.choice([1, 1, 2]),
        }
        for _ in range(40)
    ]
    stale = []
    if parameters.get("policy") == "best-effort" and repeat != 1:
        start = rng.randrange(3000)
        stale = [{"block": "slot0", "page": start + n * 3 % 700} for n in range(40)]
    return {
        "schema": {"name": "qemu-ring.result", "version": 1},
        "cell": cell["id"],
        "repeat": repeat,
        "warm_up": False,
        "seed": rng.randrange(1 << 31),
        "status": "stale" if stale else "ok",
        "error": None,
        "started": 1.75e9 + repeat,
        "wall_seconds": migration["seconds"] + 1.2,
        "migration": migration,
        "removals": removals,
        "pages_written": rng.randrange(20_000, 30_000),
        "stale_pages": len(stale),
        "stale": stale,
        "block_pages": {"slot0": 4096, "ram": memory // 4096},
        "provenance": {
            "host": {"kernel": "6.1.0-test", "cpu_model": "made up", "cpus": 4},
            "kvm": {"dirty_ring_max_bytes": 1 << 20, "manual_protect": True},
            "qemu": {"path": "/usr/bin/qemu-system-x86_64", "version": "0.0", "patched": True},
            "command_lines": ["qemu-system-x86_64 -m 256", "qemu-system-x86_64 -m 256 -incoming d"],
            "versions": {"python": "3.0", "qemu-ring": "0.0"},
        },
        **changes,
    }


def write_results(
    directory: Path,
    cells: Sequence[Record],
    runs: Sequence[Record],
    *,
    repeats: int,
    name: str = "made-up",
    **changes: object,
) -> Path:
    directory.mkdir(parents=True)
    experiment = {
        "schema": {"name": "qemu-ring.experiment", "version": 1},
        "name": name,
        "description": "Made up to test the report.",
        "source": "name: made-up\nmatrix:\n  policy: [a, b] # </script><b>&\n",
        "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "cells": list(cells),
        "order": [[run["cell"], run["repeat"], run["seed"]] for run in runs],
        "repeats": repeats,
        "warm_up": 0,
        "created": 1.75e9,
        **changes,
    }
    (directory / "experiment.json").write_text(json.dumps(experiment))
    with (directory / "results.jsonl").open("w") as file:
        file.writelines(json.dumps(run) + "\n" for run in runs)
    return directory


@pytest.fixture(scope="session")
def make_results(tmp_path_factory: pytest.TempPathFactory) -> MakeResults:
    """Make a directory of results; several calls make several.

    Arguments: `axes` of parameters that vary, `fixed` ones, `repeats`, `seed`; `change`, called
    with each run and its place, to spoil or replace it; and what experiment.json says else.
    """

    def make(
        axes: Mapping[str, Sequence[object]] | None = None,
        fixed: Mapping[str, object] | None = None,
        *,
        repeats: int = 4,
        seed: int = 1,
        change: Callable[[Record, int], Record] = lambda run, _: run,
        **experiment: Any,
    ) -> Path:
        rng = random.Random(seed)
        if axes is None:
            axes = {"policy": list(POLICIES), "memory_bytes": [64 * MIB, 256 * MIB]}
        standing = {"tracking": "ring:4096", "ring_entries": 4096, "vcpus": 2}
        cells = make_cells(axes, {**standing, **(fixed or {})})
        places = itertools.product(range(repeats), cells)
        runs = [
            change(make_run(cell, repeat, rng), place)
            for place, (repeat, cell) in enumerate(places)
        ]
        directory = tmp_path_factory.mktemp("results") / "made-up"
        return write_results(directory, cells, runs, repeats=repeats, **experiment)

    return make


@pytest.fixture
def read(make_results: MakeResults) -> Callable[..., Results]:
    """Make results as `make_results` does, and read them."""
    return lambda *args, **kwargs: read_results(make_results(*args, **kwargs))
