"""All faults with each QEMU, as a table: ``python -m tests.kvm.migration.faults [QEMU ...]``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from qemu_ring.machine import find_qemu
from tests.kvm.migration.faults.check import run_fault
from tests.kvm.migration.faults.controller import be_controller
from tests.kvm.migration.faults.fault import all_faults
from tests.kvm.migration.faults.outcome import Outcome
from tests.kvm.migration.faults.table import table


async def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("qemu", nargs="*", type=Path, help="default: the one found for prove")
    parser.add_argument("--only", default="", metavar="WORDS", help='such as "first pass, kill"')
    arguments = parser.parse_args()
    outcomes = []
    for binary in arguments.qemu or [find_qemu()]:
        for fault in all_faults():
            if arguments.only not in str(fault):
                continue
            try:
                outcome = await run_fault(fault, binary)
            except Exception as error:  # noqa: BLE001 - it is a finding; the others go on
                outcome = Outcome(fault, reported=type(error).__name__, wrong=[repr(error)])
            outcomes.append(outcome)
            for what in (*outcome.wrong, *(f"left: {name}" for name in outcome.left)):
                print(f"{binary}: {fault}: {what}", file=sys.stderr, flush=True)
    bad = sum(bool(one.wrong or one.left) for one in outcomes)
    print(table(outcomes))
    print(f"{len(outcomes)} faults, {len(outcomes) - bad} as they should be")
    return 1 if bad else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--controller"]:
        asyncio.run(be_controller(*sys.argv[2:]))
    else:
        sys.exit(asyncio.run(main()))
