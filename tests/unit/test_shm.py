"""Simultaneous sessions on one machine know whose a folder in /dev/shm is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from qemu_ring.machine import new_folder_name
from tests.conftest import _is_used_by_others
from tests.processes import killed_if_it_fails
from tests.shm import SHM, is_of_another, own_shm_folder

ANOTHER = """
import sys
from qemu_ring.machine import new_folder_name
from tests.shm import own_shm_folder
with own_shm_folder() as folder:
    print(folder, flush=True)
    print(new_folder_name(), flush=True)
    sys.stdin.read()
"""


def test_own_folders_are_told_from_those_of_another_that_lives() -> None:
    with own_shm_folder() as folder:
        assert folder.parent == SHM
        assert not is_of_another(folder)
        assert not is_of_another(new_folder_name(SHM))
        command = [sys.executable, "-c", ANOTHER]
        with killed_if_it_fails(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ) as process:
            assert process.stdout is not None
            theirs = [Path(process.stdout.readline().strip()) for _ in range(2)]
            assert all(map(is_of_another, theirs))
            assert _is_used_by_others(theirs[0])
            process.communicate()
        assert not any(map(is_of_another, theirs))
