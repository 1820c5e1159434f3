"""What is made for a while goes with its owner, however that ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qemu_ring.machine import Leftovers, new_folder_name
from tests.processes import killed_if_it_fails
from tests.waiting import wait_until

OWNER = """
import sys, time
from pathlib import Path
from qemu_ring.machine import Leftovers
folder, file = map(Path, sys.argv[1:])
owner = Leftovers(file, folder=folder)
folder.mkdir()
(folder / "socket").touch()
file.touch()
print("there", flush=True)
time.sleep(60)
"""


def test_they_go_when_it_is_closed(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    leftovers = Leftovers(file, tmp_path / "never made", folder=folder)
    folder.mkdir()
    (folder / "in it").touch()
    file.touch()
    leftovers.close()
    leftovers.close()
    assert list(tmp_path.iterdir()) == []


def test_they_go_when_their_owner_is_killed(tmp_path: Path) -> None:
    names = [str(tmp_path / "a folder"), str(tmp_path / "-file")]
    with killed_if_it_fails(
        subprocess.Popen([sys.executable, "-c", OWNER, *names], stdout=subprocess.PIPE)
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"there\n"
        owner.kill()
    wait_until(lambda: not list(tmp_path.iterdir()), "all is removed")


def test_a_folder_given_as_a_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    leftovers = Leftovers(tmp_path)
    leftovers.close()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_names_are_new() -> None:
    assert not new_folder_name().exists()
    assert new_folder_name() != new_folder_name()
