"""Remove memslots a hundred thousand times by each flush policy, and count the pages lost.

usage: python benchmarks/lossless.py --output DIR [--removals N] [--only POLICY] [--qemu PATH]

Needs a patched QEMU. N removals (100,000) by each policy in the dirty ring, and as many by bitmap,
where it applies; one in twenty with four vCPUs that write, which on few CPUs takes as long as all
the others. All shapes of change take turns. Best-effort runs at the same rate, a tenth as often, to
show that pages can be lost here at all. It takes an hour; each proof is kept in DIR/lossless.jsonl
when it ends, and a second call goes on from there. At the end DIR/lossless.md tells the counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_ring.dirty import Tracking
from qemu_ring.machine import find_qemu, probe_host, probe_qemu
from qemu_ring.memslot import FlushPolicy
from qemu_ring.prove import ProveOptions, prove

PAGES_PER_SECOND = 3000.0  # of all vCPUs: slow, because removals are what is to be counted
CHUNK = 8000  # removals of one proof
FAMILIES = (("ring:1024", "ring:65536"), ("bitmap", "bitmap:no-manual-protect"))
FAMILY_NAMES = ("ring", "bitmap")
LOSSLESS = (FlushPolicy.TOMBSTONE, FlushPolicy.QUIESCE, FlushPolicy.READ_ONLY)


@dataclass(frozen=True, slots=True)
class Case:
    """One policy in one kind of guest."""

    policy: str
    tracking: str
    vcpus: int


def wanted(removals: int, only: str | None) -> dict[Case, int]:
    """Removals by case."""
    found = {}
    for family, trackings in zip(FAMILY_NAMES, FAMILIES, strict=True):
        for policy in (FlushPolicy.BEST_EFFORT, *LOSSLESS):
            if policy is FlushPolicy.TOMBSTONE and family != "ring":
                continue
            if only not in (None, policy.value):
                continue
            share = removals // 10 if policy is FlushPolicy.BEST_EFFORT else removals
            for tracking in trackings:
                found[Case(policy.value, tracking, 1)] = share // 2 - share // 40
                found[Case(policy.value, tracking, 4)] = share // 40
    return found


def chunks(left: dict[Case, int]) -> Iterator[tuple[Case, int]]:
    """The cases in turn, a proof at a time, so that all meet the same load of the machine."""
    while left := {case: count for case, count in left.items() if count > 0}:
        for case in left:
            count = min(CHUNK, left[case])
            left[case] -= count
            yield case, count


async def run_all(binary: Path, plan: dict[Case, int], log: Path) -> None:
    """Run what the log does not have."""
    done = Counter[Case]()
    for record in records(log, (await probe_qemu(binary)).sha256):
        done[case_of(record)] += record["removals"]
    left = {case: count - done[case] for case, count in plan.items()}
    for case, count in chunks(left):
        options = ProveOptions(
            tracking=Tracking.parse(case.tracking),
            vcpus=case.vcpus,
            pages_per_second=PAGES_PER_SECOND,
            removals=count,
            policy=FlushPolicy(case.policy),
        )
        result = await prove(binary, options)
        with log.open("a") as file:
            file.write(json.dumps(result.as_dict()) + "\n")
        print(
            f"{case.policy}, {case.tracking}, {case.vcpus} vCPUs: {result.removals:,} removals, "
            f"{result.stale_pages} stale pages, {result.seconds:.0f} s",
            flush=True,
        )


def records(log: Path, sha256: str) -> list[dict[str, Any]]:
    """Of this QEMU; there may be others' in it."""
    if not log.exists():
        return []
    found = [json.loads(line) for line in log.read_text().splitlines()]
    return [one for one in found if one["qemu"]["sha256"] == sha256]


def case_of(record: dict[str, Any]) -> Case:
    return Case(record["policy"], record["tracking"], record["vcpus"])


def report(found: Sequence[dict[str, Any]]) -> str:
    """Two tables: by way of tracking, and by shape of change."""
    by_case: dict[Case, Counter[str]] = defaultdict(Counter)
    by_shape: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for record in found:
        case = case_of(record)
        family = FAMILY_NAMES[not case.tracking.startswith("ring")]
        sums = by_case[case]
        for key in ("removals", "pages_written", "stale_pages"):
            sums[key] += record[key]
        sums["entries_dropped"] += record["flush"]["entries_dropped"]
        sums["pages_late"] += sum(one["pages_late"] for one in record["flush"]["stats"])
        for shape in record["shapes"]:
            for key in ("removals", "stale_pages"):
                by_shape[case.policy, family, shape["shape"]][key] += shape[key]
    lines = [
        "| policy | tracking | vCPUs | removals | pages written | late | dropped | stale pages |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, sums in sorted(by_case.items(), key=lambda one: repr(one[0])):
        numbers = " | ".join(
            f"{sums[key]:,}"
            for key in ("removals", "pages_written", "pages_late", "entries_dropped", "stale_pages")
        )
        lines.append(f"| {case.policy} | {case.tracking} | {case.vcpus} | {numbers} |")
    shapes = sorted({shape for _, _, shape in by_shape})
    lines += ["", "Removals, and the stale pages they left where there are any, by shape:", ""]
    lines += [f"| policy | tracking | {' | '.join(shapes)} |", "|---" * (2 + len(shapes)) + "|"]
    for policy, family in sorted({key[:2] for key in by_shape}):
        cells = []
        for shape in shapes:
            sums = by_shape[policy, family, shape]
            stale = f", **{sums['stale_pages']:,} stale**" if sums["stale_pages"] else ""
            cells.append(f"{sums['removals']:,}{stale}")
        lines.append(f"| {policy} | {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


async def main() -> None:
    """Run, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--removals", type=int, default=100_000)
    parser.add_argument("--only", choices=[policy.value for policy in FlushPolicy])
    parser.add_argument("--qemu")
    arguments = parser.parse_args()
    binary = find_qemu(arguments.qemu)
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = arguments.output / "lossless.jsonl"
    await run_all(binary, wanted(arguments.removals, arguments.only), log)
    qemu, host = await probe_qemu(binary), probe_host()
    (arguments.output / "lossless.md").write_text(
        "# Pages lost when memslots are removed, by flush policy\n\n"
        f"QEMU {qemu.version}; {host.cpu_model}, {host.cpus} CPUs, Linux {host.kernel};\n"
        f"`python benchmarks/lossless.py`, the guest writes {PAGES_PER_SECOND:g} pages a second.\n"
        "Late: found by the policy's final harvest. Dropped: ring entries whose slot was gone.\n\n"
        + report(records(log, qemu.sha256))
        + "\n"
    )


if __name__ == "__main__":
    asyncio.run(main())
