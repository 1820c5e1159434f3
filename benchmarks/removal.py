"""How long it takes to remove a memslot, and for how long vCPUs are held, by flush policy.

usage: python benchmarks/removal.py [--repeats N] [--qemu PATH] [--output DIR]

Needs a patched QEMU. In each guest, one per way of tracking, number of vCPUs and slot size, the
policies take turns, so that all of them meet the same load of the machine. The slot is removed and
added by memslot-testdev while every vCPU writes random pages of it and dirty pages are logged, as
they are while migrating. With --output it writes removal.md and removal.svg there.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_ring.dirty import Tracking
from qemu_ring.errors import DeadlineError
from qemu_ring.guest import Pattern, Region, Stream, Workload, WorkloadControl, image_bytes
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    QemuBinary,
    UnnamedFile,
    find_qemu,
    probe_host,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.memslot import (
    FlushPolicy,
    Layout,
    MemslotTestdev,
    Window,
    memslot_testdev,
    query_flush,
    query_memslots,
    set_flush_policy,
)
from qemu_ring.qmp import Monitor
from qemu_ring.report.drawing import svg
from qemu_ring.report.plots.plot import SCHEMA, Spec
from qemu_ring.report.plots.theme import CONFIG, SERIES

MIB = 1 << 20
SIZES = [16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB, 8192 * MIB]
ADDRESS = 8 << 30
PAGES_PER_SECOND = 20_000
PAUSE_SECONDS = 0.002
WARM_UP = 2
LATENCY, HELD = "one removal, µs", "vCPUs held, µs"
POLICIES = {
    "ring:4096": ("best-effort", "quiesce", "read-only", "tombstone"),
    "ring:65536": ("best-effort", "quiesce", "read-only", "tombstone"),
    "bitmap": ("best-effort", "quiesce", "read-only"),
}


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One guest."""

    tracking: str
    vcpus: int
    size: int


@dataclass(frozen=True, slots=True)
class Removal:
    """One removal, nanoseconds."""

    latency: int
    held: int


Found = dict[tuple[Case, str], list[Removal]]


@asynccontextmanager
async def writing(qemu: QemuBinary, case: Case, tsc_hz: int) -> AsyncIterator[Machine]:
    """A guest whose vCPUs all write into one window, while dirty pages are logged."""
    region = Region("window", ADDRESS, case.size)
    span = Workload((region,), (Stream(),)).span("window")
    stream = Stream(Pattern.RANDOM, span, pages_per_second=PAGES_PER_SECOND / case.vcpus)
    workload = Workload((region,), (stream,) * case.vcpus)
    with ExitStack() as files:
        ram, window = (
            MemoryBackend(name, files.enter_context(UnnamedFile(name, size)))
            for name, size in (("ram", 16 * MIB), ("window", case.size))
        )
        description = MachineDescription(
            accelerator=Tracking.parse(case.tracking).accelerator(qemu),
            memory=ram,
            vcpus=case.vcpus,
            backends=(window,),
            devices=(memslot_testdev([window]),),
            firmware=image_bytes(),
            fw_cfg=workload.fw_cfg(tsc_hz),
        )
        async with await Machine.start(qemu.path, description) as machine:
            device = MemslotTestdev(machine.monitor)
            await device.map(Layout((Window(ADDRESS, "window", 0, case.size),)))
            with WorkloadControl(ram.file.fd, workload, tsc_hz) as control:
                await control.wait_writing()
            mode = "dirty-bitmap" if case.tracking == "bitmap" else "dirty-ring"
            # It logs dirty pages for that long, and measures something that nobody asks for.
            await machine.monitor.execute("calc-dirty-rate", {"calc-time": 60, "mode": mode})
            await logging(machine.monitor)
            yield machine


async def logging(monitor: Monitor) -> None:
    """Wait until KVM logs the window's dirty pages."""
    deadline = time.monotonic() + 10
    while not any(s.log_dirty for s in await query_memslots(monitor) if s.address == ADDRESS):
        if time.monotonic() > deadline:
            raise DeadlineError("no dirty pages are logged")
        await asyncio.sleep(0.002)


async def remove(monitor: Monitor, case: Case, policy: FlushPolicy) -> Removal:
    """Remove the window once, and add it again."""
    before = await set_flush_policy(monitor, policy)
    assert before.effective is policy, f"{policy} is replaced by {before.effective} here"
    whole = Layout((Window(ADDRESS, "window", 0, case.size),))
    latency, _ = await MemslotTestdev(monitor).map(Layout(), whole, pause_seconds=PAUSE_SECONDS)
    after = (await query_flush(monitor)).of(policy)
    assert after.removals == before.of(policy).removals + 1, "no dirty pages were logged"
    return Removal(latency, after.hold_ns - before.of(policy).hold_ns)


async def measure(qemu: QemuBinary, cases: list[Case], repeats: int) -> Found:
    """All cases, the policies in turn."""
    tsc_hz = probe_kvm().tsc_khz * 1000
    found: Found = defaultdict(list)
    for case in cases:
        async with writing(qemu, case, tsc_hz) as machine:
            for repeat in range(-WARM_UP, repeats):
                for name in POLICIES[case.tracking]:
                    one = await remove(machine.monitor, case, FlushPolicy(name))
                    if repeat >= 0:
                        found[case, name].append(one)
    return found


def table(found: Found) -> list[str]:
    """In Markdown, microseconds."""
    lines = [
        "| tracking | vCPUs | slot | policy | removal, us | quartiles | x best-effort | held, us |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (case, policy), removals in found.items():
        low, middle, high = (
            q / 1000 for q in statistics.quantiles([r.latency for r in removals], n=4)
        )
        base = statistics.median(r.latency for r in found[case, "best-effort"]) / 1000
        held = statistics.median(r.held for r in removals) / 1000
        lines.append(
            f"| {case.tracking} | {case.vcpus} | {case.size // MIB:,} MiB | {policy} "
            f"| {middle:,.0f} | {low:,.0f} to {high:,.0f} | {middle / base:.2f} | {held:,.0f} |"
        )
    return lines


def summary(found: Found) -> list[str]:
    """What is to be learnt from the table."""
    lines = []
    for tracking, policies in POLICIES.items():
        for policy in policies[1:]:
            ratios, held = [], defaultdict(list)
            for (case, name), removals in found.items():
                if (case.tracking, name) == (tracking, policy):
                    base = statistics.median(r.latency for r in found[case, "best-effort"])
                    ratios.append(statistics.median(r.latency for r in removals) / base)
                    held[case.vcpus].append(statistics.median(r.held for r in removals) / 1000)
            if ratios:
                spans = ", ".join(
                    f"{min(us):,.0f} to {max(us):,.0f} us with {vcpus} vCPU{'s' * (vcpus > 1)}"
                    for vcpus, us in held.items()
                )
                lines.append(
                    f"- {tracking}, {policy}: {statistics.median(ratios):.2f} times best-effort's "
                    f"latency ({min(ratios):.2f} to {max(ratios):.2f}); vCPUs held {spans}, "
                    "over all sizes"
                )
    return lines


def points(found: Found) -> list[dict[str, Any]]:
    """Median and quartiles of each case, microseconds, for a plot."""
    rows = []
    for (case, policy), removals in found.items():
        for what, values in (
            (LATENCY, [one.latency / 1000 for one in removals]),
            (HELD, [one.held / 1000 for one in removals]),
        ):
            low, middle, high = statistics.quantiles(values, n=4)
            if low > 0:  # a logarithmic axis has no place for policies that hold no vCPU
                rows.append(
                    {
                        "what": what,
                        "guest": f"{case.tracking}, {case.vcpus} vCPU{'s' * (case.vcpus > 1)}",
                        "policy": policy,
                        "size": case.size / MIB,
                        "low": low,
                        "middle": middle,
                        "high": high,
                    }
                )
    return rows


def plot(found: Found) -> Spec:
    """Describe latency and hold over the slot's size, a column for each kind of guest."""
    rows = points(found)
    policies = list(dict.fromkeys(policy for names in POLICIES.values() for policy in names))
    colours = {"domain": policies, "range": SERIES[: len(policies)]}
    sizes = sorted({row["size"] for row in rows})
    x = {
        "field": "size",
        "type": "quantitative",
        "title": "slot, MiB",
        "scale": {"type": "log", "base": 2, "nice": False, "padding": 8},
        "axis": {"values": sizes, "format": "d", "grid": False, "labelOverlap": True},
    }
    views = []
    for what in (LATENCY, HELD):
        mine = [row for row in rows if row["what"] == what]
        if not mine:
            continue
        domain = [min(row["low"] for row in mine), max(row["high"] for row in mine)]
        y = {
            "type": "quantitative",
            "title": what,
            "scale": {"type": "log", "domain": domain, "nice": False},
            "axis": {"tickCount": 4, "minExtent": 44},
        }
        guests = [
            {
                "title": guest,
                "width": 190,
                "height": 200,
                "data": {"values": [row for row in mine if row["guest"] == guest]},
                "encoding": {
                    "x": x,
                    "color": {"field": "policy", "type": "nominal", "scale": colours},
                },
                "layer": [
                    {
                        "mark": {"type": "area", "opacity": 0.15},
                        "encoding": {
                            "y": {"field": "low", **y},
                            "y2": {"field": "high"},
                        },
                    },
                    {
                        "mark": {"type": "line", "point": {"size": 30}},
                        "encoding": {"y": {"field": "middle", **y}},
                    },
                ],
            }
            for guest in dict.fromkeys(row["guest"] for row in rows)
        ]
        views.append({"hconcat": guests, "spacing": 16})
    return {"$schema": SCHEMA, "config": CONFIG, "vconcat": views, "spacing": 20}


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--max-size", type=int, default=8192, metavar="MIB")
    parser.add_argument("--qemu")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    qemu = await probe_qemu(find_qemu(arguments.qemu))
    qemu.require_memslot_testdev()
    cases = [
        Case(tracking, vcpus, size)
        for tracking in POLICIES
        for vcpus in arguments.vcpus
        for size in SIZES
        if size <= arguments.max_size * MIB
    ]
    found = await measure(qemu, cases, arguments.repeats)
    host = probe_host()
    head = (
        f"{arguments.repeats} removals of each, medians, policies in turn; QEMU {qemu.version}, "
        f"Linux {host.kernel}, {os.cpu_count()} CPUs; {PAGES_PER_SECOND:,} random pages a second "
        "written by all vCPUs together."
    )
    lines = [head, "", *summary(found), "", *table(found)]
    print("\n".join(lines))
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        (arguments.output / "removal.svg").write_text(svg(plot(found)), encoding="utf-8")
        text = "\n".join(["# Removal of one memslot", "", "![plot](removal.svg)", "", *lines, ""])
        (arguments.output / "removal.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(main())
