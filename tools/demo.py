"""One table: what is lost when memory goes away, by the distribution's QEMU and by the patched one.

usage: python tools/demo.py [--qemu PATH] [--patched PATH] [--seconds S]

Builds the patched QEMU unless the cache has it, and runs `prove` with each. `make demo` calls it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from qemu_ring.build import BuildOptions, build_qemu
from qemu_ring.cli.frame.running import run
from qemu_ring.errors import QemuRingError
from qemu_ring.machine import find_qemu, probe_host
from qemu_ring.memslot import FlushPolicy, Shape
from qemu_ring.prove import ProveOptions, ProveResult, Writer, prove

HEAD = ("QEMU", "policy", "writer", "removals", "written", "stale", "", "held", "longest")
WIDTHS = (8, 11, 10, 8, 8, 7, 20, 10, 9)


@dataclass(frozen=True, slots=True)
class Row:
    """What to run; None as a policy is what the QEMU does by itself."""

    patched: bool
    policy: FlushPolicy | None = None
    writer: Writer = Writer.VCPU


ROWS = (
    Row(patched=False),
    *(Row(True, policy) for policy in FlushPolicy if policy is not FlushPolicy.AUTO),
    Row(patched=False, writer=Writer.VHOST_USER),
    Row(patched=True, writer=Writer.VHOST_USER),
)


def line(cells: tuple[str, ...]) -> str:
    """A line of the table."""
    left = (0, 1, 2, 6)
    parts = (
        f"{cell:<{width}}" if index in left else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return " ".join(parts).rstrip()


def cells(row: Row, result: ProveResult) -> tuple[str, ...]:
    """What a run found."""
    bound = result.loss_bound
    flush = result.flush.of(result.flush.effective) if result.flush else None
    return (
        result.qemu.version.split()[0],
        result.policy if row.patched else "(none)",
        row.writer.value,
        f"{result.removals:,}",
        f"{result.pages_written:,}",
        f"{result.stale_pages:,}",
        f"< 1 in {1 / bound:,.0f} removals" if bound else "",
        f"{flush.hold_ns / 1e6:,.1f} ms" if flush else "",
        f"{flush.hold_ns_max / 1e6:,.1f} ms" if flush else "",
    )


async def found(row: Row, distribution: Path, patched: Path, seconds: float) -> ProveResult:
    """Run it; longer, if upstream's order has lost nothing yet, as on a busy host."""
    binary = patched if row.patched else distribution
    options = ProveOptions(
        seconds=seconds, policy=row.policy, writer=row.writer, shapes=(Shape.PCI,)
    )
    result = await prove(binary, options)
    if result.policy == FlushPolicy.BEST_EFFORT.value and not result.stale_pages:
        return await prove(binary, replace(options, seconds=10 * seconds, until_loss=True))
    return result


async def demo(distribution: Path, patched: Path | None, seconds: float) -> None:
    """Build, run, and print a line for each run."""
    if patched is None:
        patched = (await build_qemu(BuildOptions())).path
    print(f"QEMU of this machine: {distribution}")
    print(f"patched by this project: {patched}")
    print(f"KVM's vendor module: {probe_host().kvm_in_words}\n")
    print(line(HEAD))
    for row in ROWS:
        print(line(cells(row, await found(row, distribution, patched, seconds))), flush=True)
    print(
        "\nstale: pages that the destination of a migration has with an older content. Where none\n"
        "was found, what that says: less than one removal in so many loses a page, at 95 %.\n"
        "held: how long the vCPUs were kept out of the guest, in all, and at most at a time.\n"
        "Policies are about writes of vCPUs; vhost-user is a device that writes by itself."
    )


def main() -> int:
    """Read the options; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the distribution's QEMU")
    parser.add_argument("--patched", help="the patched QEMU; default: built, and kept")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run, about")
    arguments = parser.parse_args()
    try:
        patched = find_qemu(arguments.patched) if arguments.patched else None
        run(demo(find_qemu(arguments.qemu), patched, arguments.seconds))
    except QemuRingError as error:
        print(f"error: {error.message}", *([f"next: {error.hint}"] if error.hint else []), sep="\n")
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
