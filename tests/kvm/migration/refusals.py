"""Which refusals of a migration are right: the tests of all kinds run with old QEMUs, too."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from typing import ParamSpec

from qemu_ring.errors import QemuUnsuitableError

P = ParamSpec("P")

# What a QEMU's words name, and the version since which no QEMU may say them.
SINCE = {
    "capability dirty-limit": (8, 1),
    "capability switchover-ack": (8, 1),
    "parameter mode": (8, 2),
    "capability mapped-ram": (9, 0),
    "parameter zero-page-detection": (9, 0),
}
# Built without, or not for a guest tracked by bitmap.
ALWAYS = (
    "multifd-compression zstd",
    "TLS credentials support requires GNUTLS",
    "requires KVM with accelerator property 'dirty-ring-size'",
)


def may_be_refused(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Pass a test whose migration this QEMU cannot do, if it says so, and rightly."""

    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await test(*args, **kwargs)
        except QemuUnsuitableError as error:
            if not is_right(error.message):
                raise

    return run


def is_right(refusal: str) -> bool:
    versions = [tuple(map(int, found)) for found in re.findall(r"QEMU (\d+)\.(\d+)", refusal)]
    since = [version for words, version in SINCE.items() if words in refusal]
    if since:
        return bool(versions) and max(versions) < max(since)
    return any(words in refusal for words in ALWAYS)
