"""A real browser, driven by the DevTools protocol over a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE = 90.0  # seconds for one answer; a busy host starts a browser slowly
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # killed, it would leave its files there
    "--remote-debugging-pipe",
]


class Browser:
    """One chromium: it reads commands at its descriptor 3 and answers at 4."""

    def __init__(self, executable: str, profile: Path) -> None:
        command_end, self._commands = os.pipe()
        self._answers, answer_end = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        # Above 4, so that none of them is overwritten before it is duplicated.
        high = [os.dup2(fd, 100 + n) for n, fd in enumerate((command_end, answer_end, null))]
        targets = ((high[0], 3), (high[1], 4), (high[2], 0), (high[2], 1), (high[2], 2))
        self._pid = os.posix_spawn(
            executable,
            [executable, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            os.environ | {"HOME": str(profile), "TMPDIR": str(profile)},
            file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in targets],
            setpgroup=0,
        )
        for fd in (command_end, answer_end, null, *high):
            os.close(fd)
        self._buffer = b""
        self._last_id = 0
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """Kill it, with its helpers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._commands)
        os.close(self._answers)

    def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come before it are kept."""
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + DEADLINE
        while True:
            answer = self._read(until)
            if answer.get("id") != self._last_id:
                self.events.append(answer)
                continue
            assert "error" not in answer, (method, answer)
            result: dict[str, Any] = answer["result"]
            return result

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], max(until - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser is gone"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


class Tab:
    """A page of the browser."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        browser.events.clear()
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._target, self._session = target, attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._browser.call("Target.closeTarget", targetId=self._target)

    def call(self, method: str, **params: object) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, and what it promises."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def show(self, page: Path, *, width: int, scheme: str) -> None:
        """Load a page and wait until all its plots are drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=page.as_uri())
        self.evaluate(
            f"""new Promise((resolve, reject) => {{
                const until = Date.now() + {int(DEADLINE * 800)};
                const look = () => {{
                    const plots = [...document.querySelectorAll(".plot")];
                    if (document.readyState === "complete" && plots.length &&
                        plots.every((plot) => plot.dataset.state === "drawn")) resolve(true);
                    else if (Date.now() > until) reject(new Error("not drawn"));
                    else setTimeout(look, 20);
                }};
                look();
            }})"""
        )

    @property
    def complaints(self) -> list[object]:
        """Errors and warnings of the console so far."""
        found: list[object] = []
        for event in self._browser.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(params["args"])
            elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"])
        return found

    @property
    def requests(self) -> list[str]:
        """What was fetched so far, but for data that the page itself holds."""
        urls = [
            event["params"]["request"]["url"]
            for event in self._browser.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith("data:")]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = shutil.which("chromium")
    assert executable is not None, "no chromium is installed; run tools/setup"
    started = Browser(executable, tmp_path_factory.mktemp("profile"))
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    opened = Tab(browser)
    yield opened
    opened.close()
