"""A server of requests: who is answered, who holds nothing up, and how it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import BaseModel

from qemu_ring._compat import timeout
from qemu_ring.migration import requests
from qemu_ring.migration.requests import LINE_BYTES, RequestServer, ask
from tests.waiting import DEADLINE


class Words(BaseModel):
    text: str


async def echo(line: bytes) -> Words:
    return Words(text=line.decode())


async def say(path: Path, words: Words) -> str:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=4 * LINE_BYTES)
    return (await ask(reader, writer, words, timeout=DEADLINE)).decode()


async def test_is_answered(tmp_path: Path) -> None:
    async with timeout(60), RequestServer(echo).serve(str(tmp_path / "s")):
        words = Words(text="x")
        assert Words.model_validate_json(await say(tmp_path / "s", words)).text == (
            words.model_dump_json() + "\n"
        )


async def test_line_that_is_too_long_is_an_empty_one(tmp_path: Path) -> None:
    async with timeout(60), RequestServer(echo).serve(str(tmp_path / "s")):
        long = Words(text="x" * 2 * LINE_BYTES)
        assert await say(tmp_path / "s", long) in ('{"text":""}\n', "")


async def test_client_that_says_nothing_holds_nothing_up(tmp_path: Path) -> None:
    server = RequestServer(echo)
    async with timeout(60):
        async with server.serve(str(tmp_path / "s")):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
            writer.write(b"{")
            while not server._answering:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert await reader.read() == b""
    writer.close()


async def test_silent_client_is_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_ASK_SECONDS", 0.05)
    async with timeout(60), RequestServer(echo).serve(str(tmp_path / "s")):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        assert await reader.read() == b""
        writer.close()


async def test_other_users_are_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "credentials", lambda _: (1, 4242, 4242))
    async with timeout(60), RequestServer(echo).serve(str(tmp_path / "s")):
        assert await say(tmp_path / "s", Words(text="x")) == ""


@pytest.mark.parametrize("patience", [0.0, 60.0])
async def test_what_is_under_way_at_the_end(tmp_path: Path, patience: float) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: bytes) -> Words:
        begun.set()
        await go_on.wait()
        return Words(text="done")

    async with timeout(60):
        async with RequestServer(slow, patience=patience).serve(str(tmp_path / "s")):
            asking = asyncio.create_task(say(tmp_path / "s", Words(text="x")))
            await begun.wait()
            if patience:
                asyncio.get_running_loop().call_soon(go_on.set)
        assert await asking == ('{"text":"done"}\n' if patience else "")
