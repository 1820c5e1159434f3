"""Files that runs are made with: noted with the plan, and looked at again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qemu_ring.experiment import (
    ExperimentPlan,
    Store,
    StoreError,
    ThisHost,
    parse_experiment,
    read_results,
    run_left,
)
from qemu_ring.experiment.plan.inputs import changed_file, file_sha256, input_digests, qemu_changed

from .conftest import EXPERIMENT

LINUX = """\
name: linux
guest:
  memory: 64 MiB
  linux: {kernel: kernel, initrd: initrd}
  fw-cfg: {opt/a: {file: file}, opt/b: {text: words}}
qemu: qemu
repeats: 1
"""


@pytest.fixture
def linux(tmp_path: Path) -> ExperimentPlan:
    """With a QEMU that refuses to be one."""
    for name in ("kernel", "initrd", "file"):
        (tmp_path / name).write_text(name)
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nexit 3\n")
    qemu.chmod(0o755)
    return parse_experiment(LINUX, directory=tmp_path)


def test_what_is_noted(tmp_path: Path, linux: ExperimentPlan, plan: ExperimentPlan) -> None:
    noted = input_digests(linux.cells)
    assert {Path(path).name for path in noted} == {"qemu", "kernel", "initrd", "file"}
    assert all(Path(path).parent == tmp_path for path in noted)
    assert {len(sha256) for sha256 in noted.values()} == {64}
    assert input_digests(plan.cells) == {}
    assert changed_file(linux.cells, noted) is None


@pytest.mark.parametrize("name", ["qemu", "kernel", "initrd", "file"])
def test_a_changed_file(tmp_path: Path, linux: ExperimentPlan, name: str) -> None:
    with Store(tmp_path / "r") as store:
        store.begin(linux, None)
        (tmp_path / name).write_text("another")
        with pytest.raises(StoreError, match=rf"/{name} is not the file that the results were"):
            store.begin(linux, None)
        with pytest.raises(StoreError, match=rf"/{name} is not the file that the results were"):
            store.resume(None)
        (tmp_path / name).unlink()
        with pytest.raises(StoreError, match=rf"/{name} cannot be read any more: No such file"):
            store.resume(None)


def test_a_changed_file_of_the_same_length_and_time(tmp_path: Path) -> None:
    """As a build that sets times makes them; it is another file, put in place of the former."""
    path, other = tmp_path / "qemu", tmp_path / "other"
    for one in (path, other):
        one.write_text(one.name.ljust(10))
        os.utime(one, (1, 1))
    noted = file_sha256(path)
    assert qemu_changed(path, noted) is None
    other.replace(path)
    assert qemu_changed(path, noted) is not None


async def test_a_file_that_changes_between_runs(tmp_path: Path, linux: ExperimentPlan) -> None:
    with Store(tmp_path / "r") as store:
        results = store.begin(linux, None)
        (tmp_path / "initrd").write_text("another")
        await run_left(store, results, ThisHost(results))
    (record,) = read_results(tmp_path / "r").records
    assert record.status == "refused"
    assert str(record.error).endswith("initrd is not the file that the results were begun with")


async def test_the_common_qemu_changes_between_runs(tmp_path: Path) -> None:
    plan = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 1"))
    qemu = tmp_path / "qemu"
    qemu.write_text("one")
    identity = {"path": str(qemu), "sha256": file_sha256(qemu), "version": "1"}
    with Store(tmp_path / "r") as store:
        results = store.begin(plan, identity)
        qemu.write_text("another")
        await run_left(store, results, ThisHost(results, qemu))
    for record in read_results(tmp_path / "r").records:
        assert record.status == "refused"
        assert str(record.error).endswith("qemu is not the file that the results were begun with")


def test_results_of_an_earlier_version_noted_none(linux: ExperimentPlan) -> None:
    assert changed_file(linux.cells, {}) is None
