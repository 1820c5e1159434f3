"""A socket's name goes with its owner, and only that socket's."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.machine import named_socket
from tests.processes import killed_if_it_fails
from tests.waiting import wait_until

OWNER = """
import asyncio, sys
from pathlib import Path
from qemu_ring.machine import named_socket
async def main():
    async with named_socket(Path(sys.argv[1])):
        print("there", flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


async def test_it_is_there_for_its_user_alone_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with named_socket(Path("s")) as listening:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert names(tmp_path) == ["s"]
        assert connects(tmp_path / "s")
        assert listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    assert names(tmp_path) == []


async def test_another_ones_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with named_socket(path):
        with pytest.raises(UsageError, match="is in use by another program"):
            async with named_socket(path):
                pass
        assert connects(path)
    path.write_text("mine")
    with pytest.raises(UsageError, match="is there already, and no socket"):
        async with named_socket(path):
            pass
    assert path.read_text() == "mine"
    assert names(tmp_path) == ["s"]


async def test_name_that_was_given_to_another_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        async with named_socket(path):
            path.unlink()
            other.bind(str(path))
            other.listen()
        assert connects(path)


async def test_one_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with named_socket(path):
        assert connects(path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (Path("/no/such/directory/s"), "/no/such/directory: No such file"),
        (Path("/tmp") / ("x" * 110), "is too long for a socket's path: at most 107 bytes"),
        (Path("/proc/s"), "/proc takes no socket"),
    ],
)
async def test_paths_that_cannot_be(path: Path, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        async with named_socket(path):
            pass


@pytest.mark.parametrize("attempt", range(5))
def test_kill_9_leaves_no_name(tmp_path: Path, attempt: int) -> None:
    path = tmp_path / "s"
    with killed_if_it_fails(
        subprocess.Popen(
            [sys.executable, "-c", OWNER, str(path)], stdout=subprocess.PIPE, text=True
        )
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "there\n"
        assert connects(path)
        owner.kill()
    wait_until(lambda: not names(tmp_path), "the name is gone")
