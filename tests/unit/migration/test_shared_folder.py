"""Whose a folder is in which two QEMUs meet, and where; the real thing: tests/qemu/migration."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.migration.channels import shared_folder
from qemu_ring.migration.channels.shared_folder import SharedFolder


@pytest.fixture
def users(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """Whom the sides run as, by the order in which they are asked."""
    users: dict[str, int | None] = {"source": None, "destination": None}
    asked = iter(users)
    monkeypatch.setattr(shared_folder, "_user", lambda _: users[next(asked)])
    return users


async def test_controller_that_is_not_root_cannot_give_its_folder_away(
    users: dict[str, int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    users.update(source=65534, destination=65534)
    with pytest.raises(UsageError, match="user nobody, who can use no folder of user 12345; use t"):
        await SharedFolder(None, None, "x").make()


@pytest.mark.parametrize(("source", "destination"), [(65534, 0), (65534, 12345)])
async def test_source_that_may_not_connect(
    users: dict[str, int | None], source: int, destination: int
) -> None:
    users.update(source=source, destination=destination)
    with pytest.raises(UsageError, match="the source runs as user nobody, who can use no socket"):
        await SharedFolder(None, None, "x").make()


async def test_only_places_that_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(shared_folder, "_PARENTS", ())
    with pytest.raises(UsageError, match=r"is too long for a socket's path; use the channel fd"):
        await SharedFolder(None, None, "x").make()
    monkeypatch.setattr(shared_folder, "_PARENTS", (str(tmp_path / "none"), str(tmp_path)))
    monkeypatch.setattr(shared_folder, "LONGEST_SOCKET_PATH", len(str(tmp_path)) + 40)
    folder = SharedFolder(None, None, "x")
    made = await folder.make()
    assert made.parent.parent == tmp_path
    assert made.parent.stat().st_mode & 0o777 == 0o700
    folder.close()
    assert os.listdir(tmp_path) == [long.name]  # noqa: PTH208 - no path is made of it
