"""Each patch builds alone. It takes half an hour and more, so `make check-series` runs it only.

The sources, unpacked or tarballs, are in QEMU_RING_SERIES_SOURCES, spaces between them.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.build.cache import BINARY
from qemu_ring.build.patches import Patches
from qemu_ring.build.run import CONFIGURE
from qemu_ring.build.source import find_source, qemu_version, unpack
from qemu_ring.build.tools import configure_options, make_tools
from qemu_ring.programs import Runner
from tests.qemu.build.series import check_style

pytestmark = pytest.mark.qemu

SOURCES = os.environ.get("QEMU_RING_SERIES_SOURCES", "").split()
UPSTREAM_QTESTS = ["tests/qtest/qmp-cmd-test"]
"""Those of QEMU that look at all commands."""
QTEST = re.compile(r"^\+\+\+ b/(tests/qtest/[\w-]+)\.c$", re.MULTILINE)


@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("source", SOURCES)
async def test_each_patch_builds_on_those_before_it(source: str, tmp_path: Path) -> None:
    """Without a warning, and with a target that has no KVM; its own qtests pass in the end."""
    runner = Runner(tmp_path / "log")
    (tmp_path / "source").mkdir()
    tree = await unpack(await find_source(Path(source)), tmp_path / "source", runner)
    series = Patches.load().for_version(qemu_version(tree))
    check_style(tree / "scripts/checkpatch.pl", series)
    tools = await make_tools(tmp_path, tree, runner)
    build = tmp_path / "build"
    build.mkdir()
    targets = [BINARY, "qemu-system-avr", *UPSTREAM_QTESTS]
    for patch in series.patches:
        await replace(series, patches=(patch,)).apply(tree, runner)
        if not (build / "build.ninja").exists():
            await runner.run(
                "configuring QEMU",
                tree / "configure",
                *configure_options(tree, tools, CONFIGURE),
                *("--target-list=x86_64-softmmu,avr-softmmu", "--enable-werror"),
                cwd=build,
                timeout=1200,
                path=[tools],
            )
        targets += QTEST.findall(patch.read_text())
        await runner.run(
            f"building {patch.name}", "ninja", *targets, cwd=build, timeout=7200, path=[tools]
        )
    for qtest in targets[2:]:
        binary = f"QTEST_QEMU_BINARY={build / BINARY}"
        await runner.run(f"running {qtest}", "env", binary, build / qtest, cwd=build, timeout=600)
