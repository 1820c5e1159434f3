"""Whether tombstone can be had is read in /sys/module; auto is quiesce, and reads nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.kvm.patched.shim import ShimmedQemu

pytestmark = pytest.mark.ring

PML = "kvm_intel/parameters/pml"
OLD_AMD = "kvm_amd/parameters/npt"
CORE = "kvm/parameters/halt_poll_ns"
COMMANDS = ("qmp_capabilities", "x-query-memslot-flush", "quit")


def effective(qemu: ShimmedQemu, *options: str) -> tuple[str, list[str]]:
    """Start it with a ring; returns the policy in force, and the warnings about it."""
    accelerator = ",".join(("kvm,dirty-ring-size=4096", *options))
    arguments = ("-machine", "none", "-m", "16", "-S", "-display", "none", "-qmp", "stdio")
    done = subprocess.run(
        [qemu.path, "-accel", accelerator, *arguments],
        input="".join(json.dumps({"execute": command}) for command in COMMANDS),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    (policy,) = [
        answer["return"]["effective"]
        for answer in answers
        if "effective" in answer.get("return", {})
    ]
    return policy, [line for line in done.stderr.splitlines() if "warning:" in line]


def modules(directory: Path, files: dict[str, str | None]) -> None:
    """Lay out /sys/module; None as a content is a file that cannot be read."""
    for name, content in files.items():
        path = directory / "module" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content or "")
        path.chmod(0 if content is None else 0o444)


@pytest.mark.parametrize(
    ("files", "policy", "warns"),
    [
        pytest.param({CORE: "0"}, "quiesce", True, id="no vendor module that is known"),
        pytest.param({CORE: "0", "kvm_new/x": ""}, "quiesce", True, id="another vendor module"),
        pytest.param({CORE: "0", PML: "N\n"}, "tombstone", False, id="Intel, off"),
        pytest.param({CORE: "0", PML: "Y\n"}, "quiesce", False, id="Intel, on"),
        pytest.param({CORE: "0", PML: None}, "quiesce", True, id="Intel, not readable"),
        pytest.param({CORE: "0", PML: "what?"}, "quiesce", True, id="Intel, not understood"),
        pytest.param({CORE: "0", "kvm_intel/x": ""}, "quiesce", True, id="Intel, part hidden"),
        pytest.param({CORE: "0", OLD_AMD: "Y"}, "tombstone", False, id="AMD before PML"),
        pytest.param({CORE: "0", "kvm_amd/x": ""}, "quiesce", True, id="AMD, part hidden"),
        pytest.param(
            {CORE: "0", OLD_AMD: "Y", "kvm_amd/parameters/pml": "Y"}, "quiesce", False, id="AMD, on"
        ),
        pytest.param(
            {CORE: "0", "kvm_pvm/parameters/x": ""}, "tombstone", False, id="no mainline module"
        ),
        pytest.param({}, "quiesce", True, id="all hidden"),
    ],
)
def test_tombstone_in_force(
    shimmed_qemu: ShimmedQemu, files: dict[str, str | None], policy: str, warns: bool
) -> None:
    modules(shimmed_qemu.directory, files)
    shimmed_qemu.begin("other-modules")
    found, warnings = effective(shimmed_qemu, "memslot-flush=tombstone")
    assert found == policy
    assert len(warnings) == warns, warnings


def test_kernel_that_looks_the_memslot_up_again(shimmed_qemu: ShimmedQemu) -> None:
    """Linux 5.15."""
    modules(shimmed_qemu.directory, {CORE: "0", PML: "N\n"})
    for what in ("other-modules", "old-kernel"):
        shimmed_qemu.begin(what)
    assert effective(shimmed_qemu, "memslot-flush=tombstone") == ("quiesce", [])


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({CORE: "0", PML: "N\n"}, id="Intel, off"),
        pytest.param({CORE: "0", OLD_AMD: "Y"}, id="AMD before PML"),
        pytest.param({CORE: "0", "kvm_pvm/parameters/x": ""}, id="no mainline module"),
        pytest.param({}, id="all hidden"),
    ],
)
@pytest.mark.parametrize("asked", [(), ("memslot-flush=auto",)], ids=["default", "auto"])
def test_auto_is_quiesce_wherever_it_is(
    shimmed_qemu: ShimmedQemu, files: dict[str, str | None], asked: tuple[str, ...]
) -> None:
    modules(shimmed_qemu.directory, files)
    shimmed_qemu.begin("other-modules")
    assert effective(shimmed_qemu, *asked) == ("quiesce", [])


def test_other_policies_do_not_ask(shimmed_qemu: ShimmedQemu) -> None:
    shimmed_qemu.begin("other-modules")
    assert effective(shimmed_qemu, "memslot-flush=read-only") == ("read-only", [])
