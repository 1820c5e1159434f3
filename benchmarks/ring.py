"""Migration by dirty ring, upstream's and the series', against the bitmap as it is and at its best.

usage: python benchmarks/ring.py --output DIR [--repeats N] [--memory SIZE ...]
                                 [--workload NAME ...] [--vcpus N ...] [--ours PATH]
                                 [--upstream PATH] [--rate PAGES] [--bandwidth RATE] [--chunk SIZE]

Variants of a cell take turns, in an order of chance each time, so that all meet the same load of
the host. Upstream's ring is that of a QEMU with the parts `fixes` and `flush` alone, so that
nothing else differs. Zero pages are sent whole, or memory that nobody has written would cost next
to nothing. All memory is compared after each migration. What was ended half-way goes on when it is
called again with the same arguments; DIR/ring.md is made of what is there.

Times are ratios to the bitmap's, of medians. They depend on what the guest wrote, which is beside
them: a guest that got less of a CPU wrote less, and was migrated sooner. "resent" does not: pages
sent more than once for each page that the guest wrote meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from qemu_ring.build import BuildOptions, build_qemu
from qemu_ring.experiment import Results, RunRecord, run_experiment
from qemu_ring.machine import probe_host, probe_qemu
from qemu_ring.sizes import parse_rate, parse_size
from qemu_ring.statistics import median, median_change

MIB, GIB = 1 << 20, 1 << 30
LOW = 16 * MIB
"""What the firmware needs for itself."""
WORKLOADS = ("uniform", "part", "end", "zipf")
"""uniform: all of memory, or the larger piece of it; part: a quarter, at its beginning; end: what
is at its end; zipf: as uniform, but a few pages often."""
BASE = "bitmap"
HEADINGS = (
    "variant",
    "n",
    "time, s",
    "x bitmap",
    "sent, MiB",
    "x bitmap",
    "resent",
    "guest writes x",
    "downtime, ms",
    "absorbed, 1000",
    "stale",
)


def variants(ours: Path, upstream: Path, chunk: int) -> dict[str, dict[str, Any]]:
    """What takes turns, and what each sets."""
    found: dict[str, dict[str, Any]] = {
        BASE: {"guest.tracking": "bitmap", "qemu": str(ours)},
        f"bitmap, {chunk // MIB} MiB chunks": {
            "guest.tracking": "bitmap",
            "qemu": str(ours),
            "migration.clear-chunk": chunk,
        },
    }
    for entries in (4096, 65536):
        for name, qemu in (("upstream", upstream), ("ours", ours)):
            found[f"ring {entries}, {name}"] = {
                "guest.tracking": f"ring:{entries}",
                "qemu": str(qemu),
            }
    return found


def place(memory: int, workload: str) -> tuple[int, int]:
    """Where the guest writes, and how much: address and size, bytes.

    Memory from 3 GiB on is above 4 GiB for a guest that has more (QEMU's machine pc), and one
    stream writes to one piece: of two it is the larger.
    """
    pieces = [(LOW, min(memory, 3 * GIB) - LOW), (4 * GIB, max(memory - 3 * GIB, 0))]
    if workload == "part":
        return LOW, min(memory // 4, 2 * GIB)
    if workload == "end":
        size = memory * 5 // 8 // MIB * MIB
        return pieces[1] if pieces[1][1] else (memory - size, size)
    return max(pieces, key=lambda piece: piece[1])


def experiment(
    asked: argparse.Namespace, memory: int, workload: str, vcpus: int, qemus: tuple[Path, Path]
) -> dict[str, Any]:
    """One cell with all its variants, as an experiment's file has it."""
    address, size = place(memory, workload)
    pattern = "zipf" if workload == "zipf" else "random"
    stream = {"pattern": pattern, "pages-per-second": asked.rate / vcpus}
    seconds = 40 * memory / asked.bandwidth
    return {
        "name": name_of(memory, workload, vcpus),
        "guest": {
            "memory": memory,
            "vcpus": vcpus,
            "workload": {
                "regions": [{"name": "heap", "address": address, "size": size}],
                "streams": [stream] * vcpus,
            },
        },
        "migration": {
            "max-bandwidth": asked.bandwidth,
            "zero-page": "none",
            "abort": {"seconds": seconds},
        },
        "settle-seconds": 2.0,
        "time-limit": 2 * seconds + 60,
        "matrix": {"variant": variants(*qemus, asked.chunk)},
        "repeats": asked.repeats,
        "order": "random",
    }


def name_of(memory: int, workload: str, vcpus: int) -> str:
    return f"{memory // MIB}MiB-{workload}-{vcpus}vcpu"


def measured(results: Results) -> dict[str, list[RunRecord]]:
    """Runs that completed, by variant."""
    found: dict[str, list[RunRecord]] = defaultdict(list)
    for record in results.records:
        if record.is_measured:
            found[results.cells[record.cell].axes["variant"]].append(record)
    return found


def values(runs: Sequence[RunRecord], what: Callable[[RunRecord], float | None]) -> list[float]:
    return [value for run in runs if (value := what(run)) is not None]


def rate(run: RunRecord) -> float | None:
    """Pages that the guest wrote a second."""
    if run.migration is None or not run.migration.seconds or run.pages_written is None:
        return None
    return run.pages_written / run.migration.seconds


def table(results: Results) -> Iterator[str]:
    """The variants of one cell."""
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{'---|' * len(HEADINGS)}"
    by_variant = measured(results)
    base = by_variant.get(BASE, [])
    for variant in dict.fromkeys(cell.axes["variant"] for cell in results.cells.values()):
        runs = by_variant.get(variant, [])
        yield f"| {' | '.join([variant, str(len(runs)), *cells(runs, base)])} |"


def cells(runs: Sequence[RunRecord], base: Sequence[RunRecord]) -> list[str]:
    if not runs:
        return [""] * (len(HEADINGS) - 2)

    def of(name: str) -> Callable[[RunRecord], float | None]:
        return lambda run: getattr(run.migration, name)

    seconds, sent, written = of("seconds"), of("bytes"), rate
    return [
        estimate(values(runs, seconds), "{:.2f}"),
        ratio(values(runs, seconds), values(base, seconds)),
        estimate([one / MIB for one in values(runs, sent)], "{:,.0f}"),
        ratio(values(runs, sent), values(base, sent)),
        estimate(values(runs, of("resent_per_write")), "{:.3f}"),
        ratio(values(runs, written), values(base, written)),
        estimate([1000 * one for one in values(runs, of("downtime_seconds"))], "{:.0f}"),
        estimate([one / 1000 for one in values(runs, of("pages_absorbed"))], "{:.1f}"),
        str(sum(run.stale_pages or 0 for run in runs)),
    ]


def estimate(found: Sequence[float], shape: str) -> str:
    """The median, and its interval."""
    if not found:
        return ""
    one = median(found)
    if one.low is None or one.high is None:
        return shape.format(one.value)
    return f"{shape.format(one.value)} ({shape.format(one.low)} to {shape.format(one.high)})"


def ratio(found: Sequence[float], base: Sequence[float]) -> str:
    """Of two medians, and its interval."""
    change = median_change(found, base) if found and base else None
    if change is None:
        return ""
    if change.low is None or change.high is None:
        return f"{1 + change.value:.2f}"
    return f"{1 + change.value:.2f} ({1 + change.low:.2f} to {1 + change.high:.2f})"


async def head(asked: argparse.Namespace, qemus: tuple[Path, Path]) -> list[str]:
    host, (ours, upstream) = probe_host(), qemus
    lines = ["# Migration by dirty ring and by bitmap\n", f"{host.cpu_model}, {host.cpus} CPUs, "]
    lines[-1] += f"Linux {host.kernel}. {asked.rate:,.0f} pages a second, "
    lines[-1] += f"{asked.bandwidth / 1e6:,.0f} MB/s. Medians, with 95 % intervals or, of few "
    lines[-1] += "runs, the range. Bitmaps are cleared in chunks of 1 GiB where nothing is said.\n"
    for name, path in (("ours", ours), ("upstream", upstream)):
        qemu = await probe_qemu(path)
        lines.append(f"- {name}: QEMU {qemu.version}, sha256 {qemu.sha256[:12]}")
    return lines


async def qemus_of(asked: argparse.Namespace) -> tuple[Path, Path]:
    ours = asked.ours or (await build_qemu()).path
    upstream = asked.upstream or (await build_qemu(BuildOptions(part="flush"))).path
    return ours, upstream


async def main() -> None:
    """Run what is not done yet, cell by cell, and write down what is there after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--memory", type=parse_size, nargs="+", default=[GIB, 4 * GIB, 8 * GIB])
    parser.add_argument("--workload", choices=WORKLOADS, nargs="+", default=WORKLOADS)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1])
    parser.add_argument("--ours", type=Path, help="default: qemu-ring build")
    parser.add_argument("--upstream", type=Path, help="default: qemu-ring build --series flush")
    parser.add_argument("--rate", type=float, default=62_500.0, help="pages a second")
    parser.add_argument("--bandwidth", type=parse_rate, default=400_000_000)
    parser.add_argument("--chunk", type=parse_size, default=4 * MIB, help="of the best bitmap")
    asked = parser.parse_args()
    qemus = await qemus_of(asked)
    asked.output.mkdir(parents=True, exist_ok=True)
    lines = await head(asked, qemus)
    for memory in asked.memory:
        for workload in asked.workload:
            for vcpus in asked.vcpus:
                name = name_of(memory, workload, vcpus)
                file = asked.output / f"{name}.yaml"
                content = experiment(asked, memory, workload, vcpus, qemus)
                file.write_text(yaml.safe_dump(content, sort_keys=False))
                results = await run_experiment(file, asked.output / name)
                lines += [f"\n## {name}\n", *table(results)]
                (asked.output / "ring.md").write_text("\n".join(lines) + "\n")
                print("\n".join(lines[-len(list(table(results))) - 1 :]), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
