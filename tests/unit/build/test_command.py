"""`qemu-ring build` as a user runs it, where it does not come to build."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path

import pytest

from qemu_ring.build import Manifest, built_binary
from qemu_ring.build.patches import Patches
from qemu_ring.build.run import CONFIGURE
from tests.command import COMMAND
from tests.processes import killed_if_it_fails
from tests.waiting import DEADLINE

BUILD = [*COMMAND, "build"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/qemu-ring"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "/no/such/source"], ["/no/such/source does not exist", "tarball"]),
        (["--source", "/etc"], ["/etc is no QEMU source"]),
        (["--qemu-version", "9.2"], ["'--qemu-version'", "'7.2'", "'10.0'"]),
        (
            ["--qemu-version", "7.2", "--source", "/etc"],
            ["--qemu-version is of Debian's source"],
        ),
        (["--jobs", "0"], ["'--jobs'", "use 1 to 1024"]),
        (["--jobs", "many"], ["many", "integer"]),
    ],
)
def test_usage_errors(cache: Path, arguments: list[str], words: list[str]) -> None:
    done = subprocess.run([*BUILD, *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qemu-ring: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert not cache.exists()


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run(BUILD, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert "as root, run: apt-get install gcc make " in done.stderr
    assert done.stderr.count("\n") == 1


def test_it_says_that_it_waits(cache: Path, tree: Path, programs: Path) -> None:
    cache.mkdir(parents=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with killed_if_it_fails(
            subprocess.Popen(
                [*BUILD, "--source", tree],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        ) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "qemu-ring: waiting for another build to end\n"
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert err == (
        "qemu-ring: stopping\nqemu-ring: ended by SIGINT; everything started was stopped\n"
    )


def test_nothing_is_built_yet(cache: Path) -> None:
    assert built_binary() is None
    assert not cache.exists()


def test_relative_cache_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So says the XDG Base Directory Specification."""
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert built_binary() is None


def publish(cache: Path, key: str, *, configure: list[str], built: float) -> Path:
    """A build in the cache, by this package's patches."""
    series = Patches.load().series["10.0"]
    place = cache / "builds" / key
    place.mkdir(parents=True)
    path = place / "qemu-system-x86_64"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    manifest = Manifest(
        version="10.0.13",
        source="a",
        source_sha256="b",
        series=series.version,
        patches=[patch.name for patch in series.patches],
        patches_sha256=series.sha256,
        configure=configure,
        debug=False,
        compiler="cc",
        libc=os.confstr("CS_GNU_LIBC_VERSION") or "",
        sha256="c",
        size=path.stat().st_size,
        built=built,
        seconds=1.0,
    )
    (place / "manifest.json").write_text(manifest.dump())
    return path


def test_build_with_the_options_of_today_goes_before_a_newer_one(cache: Path) -> None:
    """Another checkout, of another version, may have built since."""
    package = f"--with-pkgversion=qemu-ring {Patches.load().series['10.0'].sha256[:12]}"
    other = publish(cache, "other", configure=["--enable-kvm", package], built=2.0)
    assert built_binary() == other
    ours = publish(cache, "ours", configure=[*CONFIGURE, package], built=1.0)
    assert built_binary() == ours
