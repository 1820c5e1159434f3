"""Experiments that are run for real, by the command, as a user runs them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.experiment import Results, read_results
from tests.command import COMMAND

EXPERIMENT = [*COMMAND, "experiment"]
OWNER_VARIABLE = "QEMU_RING_TEST_OWNER"  # set by the watch over what tests leave behind
SMALL = """\
name: small
guest:
  memory: 40 MiB
  tracking: bitmap
  workload:
    regions: [{name: heap, address: 16 MiB, size: 16 MiB}]
    streams: [{pattern: random, pages-per-second: 10000}]
migration: {max-bandwidth: 500 MiB}
settle-seconds: 0.05
time-limit: 300
"""

Experiment = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Run `qemu-ring experiment ARGUMENTS` in the test's directory."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EXPERIMENT, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
        )

    return run


def documents(directory: Path) -> list[dict[str, Any]]:
    """The records in a directory of results, as they stand there."""
    return documents_of(read_results(directory))


def documents_of(results: Results) -> list[dict[str, Any]]:
    """The same of what was read."""
    return [record.as_dict() for record in results.records]


def program(path: Path, text: str) -> Path:
    """A shell script of that text."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def qemu_that(path: Path, qemu: Path, then: str) -> Path:
    """A QEMU that tells what it can do, and does something else when it shall run a guest."""
    return program(path, f'case "$*" in *"-machine none"*) exec {qemu} "$@";; esac\n{then}')
