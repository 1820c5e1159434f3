"""Where the kernel and the initramfs are kept."""

from __future__ import annotations

from pathlib import Path

from qemu_ring.build.cache import Cache

__all__ = ["linux_cache"]


def linux_cache(cache: Path | None) -> Cache:
    """The part of the cache for Linux guests; with a lock of its own, so no QEMU build delays it.

    Args:
        cache: qemu-ring's cache directory; None for the user's.
    """
    return Cache(Cache(cache).root / "linux")
