"""Debian's kernel, fetched with apt into the cache; nothing is installed."""

from __future__ import annotations

import re
from pathlib import Path

from qemu_ring.errors import BuildError, HostError
from qemu_ring.guest.linux.cache import linux_cache
from qemu_ring.programs import Runner, output_of

__all__ = ["debian_kernel"]

_NEWEST = "linux-image-cloud-amd64"  # it has no kernel, but depends on the newest that has one


async def debian_kernel(cache: Path | None = None) -> Path:
    """Debian's kernel for virtual machines; fetched if the cache has none.

    Args:
        cache: qemu-ring's cache directory; None for the user's.

    Raises:
        HostError: apt knows no such kernel.
        BuildError: it could not be fetched.
    """
    kept = linux_cache(cache)
    found = _newest(kept.root)
    if found is not None:
        return found
    async with kept.lock(lambda: None):
        found = _newest(kept.root)  # another one may have fetched it meanwhile
        if found is not None:
            return found
        package = await _package()
        async with kept.work() as work:
            runner = Runner(kept.log("kernel"))
            what = f"fetching Debian's kernel ({package})"
            await runner.run(what, "apt-get", "download", package, cwd=work, timeout=600)
            for archive in work.glob("*.deb"):
                await runner.run(what, "dpkg-deb", "-x", archive, work, cwd=work, timeout=120)
            for kernel in (work / "boot").glob("vmlinuz-*"):
                return kernel.rename(kept.root / kernel.name)
    raise BuildError(f"{package} has no kernel", hint="name one: linux.kernel")


def _newest(place: Path) -> Path | None:
    return max(place.glob("vmlinuz-*"), key=lambda path: path.stat().st_mtime, default=None)


async def _package() -> str:
    told = await output_of("apt-cache", "--no-all-versions", "show", _NEWEST)
    found = re.search(r"^Depends: (linux-image-[\w.+-]+)", told or "", re.MULTILINE)
    if found is None:
        raise HostError(
            f"apt knows no {_NEWEST}",
            hint="on Debian: apt-get update; elsewhere name a kernel: linux.kernel",
        )
    return found[1]
