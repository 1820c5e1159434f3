"""A libvirt daemon of a test's own, as another user if the test runs as root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import wait_until

__all__ = ["Libvirt", "listens", "running_libvirt"]

_COMMAND_SECONDS = 120.0


@dataclass(frozen=True)
class Libvirt:
    """A libvirt daemon, and how to talk to it.

    Args:
        home: its directory, which its user owns.
        prefix: what runs a program as its user.
        environment: with which that user finds it.
    """

    home: Path
    prefix: tuple[str, ...]
    environment: dict[str, str]

    def virsh(self, *words: str) -> str:
        """What `virsh` prints."""
        done = subprocess.run(
            [*self.prefix, "virsh", "-q", "-c", "qemu:///session", *words],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=_COMMAND_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def give(self, path: Path) -> None:
        """Make its user the owner of a file or directory."""
        owner = self.home.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


@contextmanager
def running_libvirt(home: Path) -> Iterator[Libvirt]:
    """Start one in an empty directory. As root it is another user's, whose session root has not."""
    daemon = shutil.which("libvirtd", path=f"{os.environ['PATH']}:/usr/sbin")
    if daemon is None or shutil.which("virsh") is None:
        pytest.skip("libvirt is not installed (libvirt-daemon-driver-qemu, libvirt-clients)")
    prefix: tuple[str, ...] = ()
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        prefix = ("setpriv", "--reuid=nobody", "--clear-groups", f"--regid={nobody.pw_gid}")
    environment = {
        **os.environ,
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
    }
    found = Libvirt(home, prefix, environment)
    config = home / "config/libvirt"
    config.mkdir(parents=True)
    # Otherwise it starts virtlogd, which goes on for two minutes.
    (config / "qemu.conf").write_text('stdio_handler = "file"\n')
    for directory in (config.parent, config):
        shutil.copystat(home, directory)
        found.give(directory)
    with (
        (home / "log").open("wb") as log,
        subprocess.Popen([*prefix, daemon], env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            wait_until(lambda: listens(home / "libvirt/libvirt-sock"), "libvirtd listens")
            yield found
        finally:
            process.terminate()


def listens(path: Path) -> bool:
    """Whether somebody listens there; a socket is there a moment before that. Connects to none."""
    sockets = Path("/proc/net/unix").read_text(errors="replace").splitlines()
    return any(line.endswith(f" {path}") and " 00010000 " in line for line in sockets)
