"""How fast two memories are compared, against one memcmp over two mappings of the whole files.

Both are timed from open descriptors to the answer, so making and dropping the mappings counts on
either side. They take turns in one run, on the same two memfds, which are filled before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qemu_ring.verify import Block, compare_blocks
from qemu_ring.verify._memory import mapped, same

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def filled_memfd(name: str, size: int) -> int:
    """A memfd of `size` bytes, the same ones each time, without a hole."""
    fd = os.memfd_create(name)
    content = bytes(range(256)) * (MIB // 256)
    for offset in range(0, size, MIB):
        os.pwrite(fd, content, offset)
    return fd


def seconds(call: Callable[[], bool]) -> float:
    started = time.perf_counter()
    equal = call()
    elapsed = time.perf_counter() - started
    if not equal:
        raise SystemExit("the two memories must be equal")
    return elapsed


def peak_resident_mib() -> int:
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


def show(what: str, values: list[float], unit: str) -> None:
    low, median, high = min(values), statistics.median(values), max(values)
    print(f"{what:42} median {median:6.2f} {unit}, from {low:.2f} to {high:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024, help="size of each memory")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    size = arguments.mib * MIB
    source, destination = filled_memfd("source", size), filled_memfd("destination", size)
    block = Block("ram", source, destination, size)

    def compared() -> bool:
        return compare_blocks([block]).equal

    def plain() -> bool:
        with mapped(source, 0, size) as left, mapped(destination, 0, size) as right:
            return same(left, right, size)

    compared()  # warms both up
    resident_mib = peak_resident_mib()  # before plain() maps all
    ours, theirs, touched = [], [], []
    with mapped(source, 0, size) as left, mapped(destination, 0, size) as right:
        same(left, right, size)
        for _ in range(arguments.repeats):
            ours.append(seconds(compared))
            theirs.append(seconds(plain))
            touched.append(seconds(lambda: same(left, right, size)))

    print(f"2 x {arguments.mib} MiB, {arguments.repeats} repeats, {os.cpu_count()} CPUs")
    show("compare_blocks", [size / t / 1e9 for t in ours], "GB/s")
    show("memcmp", [size / t / 1e9 for t in theirs], "GB/s")
    show("memcmp, mappings touched before", [size / t / 1e9 for t in touched], "GB/s")
    show("compare_blocks / memcmp", [b / a for a, b in zip(ours, theirs, strict=True)], "")
    show(
        "compare_blocks / memcmp, touched before",
        [b / a for a, b in zip(ours, touched, strict=True)],
        "",
    )
    print(f"largest resident size after the first comparison: {resident_mib} MiB")


if __name__ == "__main__":
    main()
