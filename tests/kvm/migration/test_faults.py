"""Faults at each phase: the guest survives where it can, what is told is so, nothing is left.

Some of them; all are run by ``python -m tests.kvm.migration.faults``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kvm.migration.faults.check import run_fault
from tests.kvm.migration.faults.fault import Fault, Kind, Phase, all_faults, some_faults

pytestmark = pytest.mark.kvm


def test_each_phase_and_each_kind_of_fault_is_among_them() -> None:
    some = some_faults()
    assert {fault.phase for fault in some} == set(Phase)
    assert {fault.kind for fault in some} == set(Kind)
    assert set(some) <= set(all_faults())


@pytest.mark.parametrize("fault", some_faults(), ids=str)
async def test_fault(qemu_path: Path, fault: Fault) -> None:
    outcome = await run_fault(fault, qemu_path)
    assert (outcome.wrong, outcome.left) == ([], [])
