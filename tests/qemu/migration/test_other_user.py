"""QEMUs that run as another user, or see other files: what a controller can do all the same."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qemu_ring.qmp import Monitor, commands
from tests.command import run_command
from tests.kvm.migration.qemus import Qemus

pytestmark = [pytest.mark.qemu, pytest.mark.alternating("binary")]

MIB = 1 << 20
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
PRIVATE_TMP = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /tmp && exec "$@"', "sh")


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can start a QEMU as another user, or with other mounts")


@pytest.fixture(scope="module")
def public_folder() -> Iterator[Path]:
    """A folder that every user sees, and that is not in /tmp."""
    with tempfile.TemporaryDirectory(prefix="qemu-ring-test-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture(params=["distribution", "patched"])
def binary(request: pytest.FixtureRequest, qemu_path: Path, public_folder: Path) -> Path:
    if request.param == "distribution":
        return qemu_path
    found: Path = request.getfixturevalue("patched_qemu")
    public = public_folder / "qemu-system-x86_64"  # homes are closed to others
    if not public.exists():
        shutil.copy2(found, public)
    return public


@pytest.fixture
def folder(public_folder: Path) -> Path:
    made = Path(tempfile.mkdtemp(dir=public_folder))
    os.chown(made, NOBODY, NOBODY)
    return made


@pytest.fixture
def others(binary: Path, folder: Path) -> Iterator[Qemus]:
    """Two QEMUs of the user nobody."""
    with ExitStack() as stack:
        qemus = Qemus(folder, binary, accelerator="tcg", through=AS_NOBODY)
        stack.callback(qemus.stop)
        yield qemus


@pytest.fixture
def elsewhere(binary: Path, folder: Path) -> Iterator[Qemus]:
    """Two QEMUs that have a /tmp of their own each."""
    with ExitStack() as stack:
        qemus = Qemus(folder, binary, accelerator="tcg", through=PRIVATE_TMP)
        stack.callback(qemus.stop)
        yield qemus


def migrate(*arguments: str, expect: int = 0, tmpdir: Path | None = None) -> tuple[str, str]:
    environment = dict(os.environ) | ({} if tmpdir is None else {"TMPDIR": str(tmpdir)})
    return run_command("migrate", *arguments, expect=expect, environment=environment)


def fdsets(monitor: str) -> list[object]:
    async def ask() -> list[object]:
        async with await Monitor.connect(monitor) as qmp:
            return list(await commands.query_fdsets(qmp))

    return asyncio.run(ask())


def knows_mapped_ram(monitor: str) -> bool:
    async def ask() -> bool:
        async with await Monitor.connect(monitor) as qmp:
            return "mapped-ram" in await commands.query_capabilities(qmp)

    return asyncio.run(ask())


def assert_saved_and_restored(qemus: Qemus, saved: Path, *options: str) -> None:
    migrate(qemus.source, "--to-file", str(saved), *options)
    assert (saved.stat().st_uid, stat.S_IMODE(saved.stat().st_mode)) == (0, 0o600)
    assert fdsets(qemus.source) == []
    out, _ = migrate(qemus.destination, "--from-file", str(saved), *options, "--json")
    assert json.loads(out)["state"] == "running"
    assert fdsets(qemus.destination) == []
    qemus.assert_alive()


def test_saved_to_where_only_the_controller_may_write(others: Qemus, tmp_path: Path) -> None:
    assert stat.S_IMODE(tmp_path.stat().st_mode) & 0o77 == 0
    assert_saved_and_restored(others, tmp_path / "saved,offset=4096")


@pytest.mark.parametrize(
    "options", [(), ("--multifd", "2"), ("--multifd", "2", "--direct-io")], ids=" ".join
)
def test_saved_with_a_place_for_each_page(
    others: Qemus, public_folder: Path, options: tuple[str, ...]
) -> None:
    if not knows_mapped_ram(others.source):
        _, err = migrate(others.source, "--to-file", "/none", "--mapped-ram", expect=3)
        assert "has no capability mapped-ram" in err
        return
    with tempfile.TemporaryDirectory(dir=public_folder) as closed:  # O_DIRECT needs a disk
        assert_saved_and_restored(others, Path(closed, "saved"), "--mapped-ram", *options)


def test_memory_that_may_not_be_locked(binary: Path, folder: Path) -> None:
    """Sending without a copy takes locked memory, which root alone has without a limit.

    It is told of before anything starts: QEMU fails in the middle, and 7.2 may hang there.
    """
    limited = ("prlimit", "--memlock=4096:4096", *AS_NOBODY)
    qemus = Qemus(folder, binary, accelerator="tcg", through=limited)
    try:
        zero_copy = ("--multifd", "2", "--zero-copy", "--channel", "tcp:127.0.0.1:0")
        _, err = migrate(qemus.source, qemus.destination, *zero_copy, expect=3)
        assert "may lock 4,096 bytes of memory" in err
        assert "takes 1,048,576 at least" in err
        assert "allow QEMU's process to lock more memory (ulimit -l" in err
        assert err.count("\n") == 1
        assert qemus.processes[0].poll() is None
    finally:
        qemus.stop()


def test_file_that_a_killed_controller_left_open_is_taken_back(
    others: Qemus, tmp_path: Path
) -> None:
    async def leave() -> None:
        with (tmp_path / "file").open("wb") as file:
            async with await Monitor.connect(others.source) as qmp:
                await qmp.add_fd(file.fileno(), opaque="qemu-ring-migration")
                await qmp.add_fd(file.fileno(), opaque="of another program", fdset=7)

    asyncio.run(leave())
    migrate(others.source, "--to-file", str(tmp_path / "saved"))
    # QEMU 7.2 is passed no file as a set, and forgets those of a client that has gone.
    assert all("ring" not in str(one) for one in fdsets(others.source)) or not knows_mapped_ram(
        others.source
    )


def test_default_channel(others: Qemus) -> None:
    out, _ = migrate(others.source, others.destination)
    assert "precopy over fd: completed" in out
    assert "the guest runs at the destination" in out
    others.assert_alive()


@pytest.mark.parametrize("options", [("--channel", "unix"), ("--multifd", "2")], ids=" ".join)
def test_socket_of_our_own(others: Qemus, options: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as closed:  # to them, which is no hindrance
        out, _ = migrate(others.source, others.destination, *options, tmpdir=Path(closed))
        assert list(Path(closed).iterdir()) == []
    assert "precopy over unix: completed" in out
    others.assert_alive()


def test_socket_that_both_make_in_our_temporary_directory(
    others: Qemus, public_folder: Path
) -> None:
    options = ("--channel", "unix")
    out, _ = migrate(others.source, others.destination, *options, tmpdir=public_folder)
    assert "precopy over unix: completed" in out
    assert not list(public_folder.glob("qemu-ring-*"))


def test_private_tmp(elsewhere: Qemus) -> None:
    options = ("--multifd", "2", "--max-bandwidth", "0")
    out, _ = migrate(elsewhere.source, elsewhere.destination, *options)
    assert "precopy over unix: completed" in out
    assert "the guest runs at the destination" in out


def test_saved_to_what_qemu_does_not_see(elsewhere: Qemus, tmp_path: Path) -> None:
    assert_saved_and_restored(elsewhere, tmp_path / "saved")


def test_long_tmpdir(others: Qemus, public_folder: Path) -> None:
    long = public_folder / ("x" * 100)
    long.mkdir(exist_ok=True)
    out, _ = migrate(others.source, others.destination, "--channel", "unix", tmpdir=long)
    assert "precopy over unix: completed" in out
    assert list(long.iterdir()) == []
