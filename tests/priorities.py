"""Guests that yield to what tests wait for, while several tests run at the same time.

The firmware's vCPUs spin until their next write is due: with several tests side by side half of the
host's time goes into that, and QEMUs, commands and the tests themselves wait for the other half.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator

from tests.processes import descendants

__all__ = ["KEEPS_PRIORITY", "vcpus_yield"]

KEEPS_PRIORITY = "QEMU_RING_TEST_KEEPS_PRIORITY"
"""In the environment of what a test starts that is marked `busy_guest`: 1."""

_NICE = 10  # the kernel's measure: a ninth of the weight of a thread with 0
_LOOK_SECONDS = 0.1
_SHARE = 0.03  # of a CPU, at most, that looking may take


@contextlib.contextmanager
def vcpus_yield() -> Iterator[None]:
    """Lower the priority of the vCPU threads of all that this process and its children start."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), name="vcpus-yield", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(ended: threading.Event) -> None:
    done: set[int] = set()
    took = 0.0
    while not ended.wait(max(_LOOK_SECONDS, took / _SHARE)):
        began = time.thread_time()
        threads: set[int] = set()
        for qemu in descendants(os.getpid(), lambda one: one.name.startswith("qemu-system")):
            with contextlib.suppress(OSError):  # it, or one of its threads, has ended
                if not qemu.was_told(f"{KEEPS_PRIORITY}=1"):
                    threads |= qemu.vcpu_threads
        for thread in threads - done:
            with contextlib.suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, _NICE)
        done = threads
        took = time.thread_time() - began
