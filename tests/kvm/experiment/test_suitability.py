"""What a QEMU, or this host, cannot do is one error before anything starts, not one a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus, QemuUnsuitableError
from qemu_ring.experiment import parse_experiment, unsuitable_cells

from .conftest import SMALL, Experiment, program

pytestmark = [pytest.mark.ring, pytest.mark.build]
POLICIES = "matrix: {guest.flush-policy: [best-effort, quiesce]}\nrepeats: 50\n"
MIXED = """\
matrix:
  what:
    plain: {migration.kind: precopy}
    policy: {guest.flush-policy: quiesce}
    bits: {guest.tracking: "bitmap:no-manual-protect"}
    dirty-limit: {guest.tracking: ring:4096, migration.throttle: dirty-limit}
    tcg: {guest.accelerator: tcg, guest.tracking: null}
    huge-ring: {guest.tracking: "ring:16777216"}
"""


def test_none_of_the_cells_can_be_run(
    tmp_path: Path, qemu_path: Path, experiment: Experiment
) -> None:
    (tmp_path / "e.yaml").write_text(SMALL + POLICIES)
    for arguments in (["run", "e.yaml", "-o", "r"], ["plan", "e.yaml"]):
        done = experiment(*arguments, "--qemu", qemu_path)
        assert done.returncode == ExitStatus.HOST
        assert done.stderr.startswith(f"qemu-ring: 2 of 2 cells cannot be run: {qemu_path} (")
        assert done.stderr.endswith("is not patched; build one that is, with qemu-ring build\n")
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_qemu_of_every_cell_is_none(tmp_path: Path, experiment: Experiment) -> None:
    broken = program(tmp_path / "broken", "echo so it is >&2; exit 3")
    (tmp_path / "e.yaml").write_text(f"{SMALL}qemu: {broken}\nrepeats: 50\n")
    done = experiment("run", "e.yaml", "-o", "r")
    assert done.returncode == ExitStatus.HOST
    assert f"{broken} is no usable QEMU: so it is" in done.stderr
    assert not (tmp_path / "r").exists()


async def test_each_cell_that_cannot_be_run_is_named(qemu_path: Path, patched_qemu: Path) -> None:
    plan = parse_experiment(SMALL + MIXED)
    names = {cell.id: cell.axes["what"] for cell in plan.cells}
    found = await unsuitable_cells(plan.cells, patched_qemu)
    assert {names[one]: str(error) for one, error in found.items()}.keys() == {"huge-ring"}
    found = await unsuitable_cells(plan.cells, qemu_path)
    said = {names[one]: error for one, error in found.items()}
    assert said.keys() == {"policy", "bits", "dirty-limit", "huge-ring"}
    assert "is not patched" in said["policy"].message
    assert "has no capability dirty-limit" in said["dirty-limit"].message
    assert isinstance(said["dirty-limit"], QemuUnsuitableError)
    assert "over this host's limit" in said["huge-ring"].message


def test_the_others_are_run(tmp_path: Path, qemu_path: Path, experiment: Experiment) -> None:
    text = f"{SMALL}matrix: {{guest.flush-policy: [null, quiesce]}}\nrepeats: 1\n"
    (tmp_path / "e.yaml").write_text(text)
    document = json.loads(experiment("plan", "e.yaml", "--qemu", qemu_path, "--json").stdout)
    none, policy = document["cells"]
    assert none["unsuitable"] is None
    assert "is not patched" in policy["unsuitable"]
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", qemu_path, "--json")
    assert done.returncode == ExitStatus.FAILED
    assert done.stderr.startswith(f"1 of 2 cells cannot be run: {qemu_path} (")
    assert json.loads(done.stdout)["statuses"] == {"ok": 1, "refused": 1}
