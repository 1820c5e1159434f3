"""Asking whoever drives a migration, when there is nobody, or no answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qemu_ring.errors import DeadlineError, QemuRingError, UsageError
from qemu_ring.migration.control import (
    ControlAnswer,
    ControlRequest,
    control_socket,
    request_control,
)
from qemu_ring.migration.requests import RequestServer

STATUS = ControlRequest(action="status")


async def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no migration is controlled at .* No such file"):
        await request_control(str(tmp_path / "none"), STATUS)


async def test_no_answer_in_time_leaves_it_open(tmp_path: Path) -> None:
    async def never(_: bytes) -> ControlAnswer:
        await asyncio.Event().wait()
        return ControlAnswer()

    at = str(tmp_path / "s")
    async with RequestServer(never).serve(at):
        with pytest.raises(DeadlineError, match="whether it was done is not known"):
            await request_control(at, STATUS, timeout=0.2)


async def test_migration_that_has_not_begun(tmp_path: Path) -> None:
    at = tmp_path / "s"
    async with control_socket(at):
        with pytest.raises(QemuRingError, match="the migration has not begun, or is over"):
            await request_control(str(at), STATUS)
    assert not at.exists()


async def test_what_is_no_request(tmp_path: Path) -> None:
    at = tmp_path / "s"
    async with control_socket(at):
        reader, writer = await asyncio.open_unix_connection(str(at))
        writer.write(b'{"action": "explode"}\n')
        answer = ControlAnswer.model_validate_json(await asyncio.wait_for(reader.readline(), 30))
        writer.close()
    assert answer.exit_status == 2
    assert answer.error is not None
    assert "not a request" in answer.error
