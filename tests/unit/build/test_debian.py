"""Debian's source: which mirror, which keys, what apt is told, and what its errors become."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.build import BuildError, BuildOptions, build_qemu
from qemu_ring.build.debian import fetch_debian_source, find_mirror, source_entry
from qemu_ring.errors import HostError
from qemu_ring.programs import Runner
from tests.unit.build.conftest import write_program

GENERAL = "http://deb.debian.org/debian"
DEB822 = """# made by the installer
Types: deb
# a remark in the middle
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A Debian without sources, but with keys."""
    keyring = tmp_path / "root/usr/share/keyrings/debian-archive-keyring.gpg"
    keyring.parent.mkdir(parents=True)
    keyring.write_text("")
    (tmp_path / "root/etc/apt/sources.list.d").mkdir(parents=True)
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("name", "text", "mirror"),
    [
        ("debian.sources", DEB822, "http://mirror.example/debian"),
        ("debian.sources", DEB822.replace("\nURIs:", "\nURIs:\n"), "http://mirror.example/debian"),
        ("debian.sources", DEB822.replace("bookworm", "sid"), "http://mirror.example/debian"),
        ("debian.sources", "Enabled: no\n" + DEB822, GENERAL),
        ("debian.sources", DEB822.replace("debian-archive", "other"), GENERAL),
        ("debian.sources", DEB822.replace("Suites: bookworm ", "Suites: "), GENERAL),
        ("debian.sources", DEB822.replace("bookworm", "noble"), GENERAL),
        ("debian.sources", DEB822.replace(" main contrib", " stable"), GENERAL),
        (
            "debian.sources",
            "Types: deb\nURIs: http://x.example/\nSuites: stable\nComponents: main\n\n" + DEB822,
            "http://mirror.example/debian",
        ),
        (
            "debian.sources",
            DEB822.replace("http://mirror.example/debian", "mirror+file:///etc/apt/mirrors.list"),
            "mirror+file:///etc/apt/mirrors.list",
        ),
        ("a.list", "deb http://m.example/debian trixie main # x\n", "http://m.example/debian"),
        ("a.list", "deb-src http://m.example/d/ trixie main\n", "http://m.example/d/"),
        (
            "a.list",
            (
                "#deb http://no.example bookworm main\n"
                "deb cdrom:[Debian 12]/ bookworm main\n"
                "deb https://chrome.example/deb stable main\n"
                "deb [ arch=amd64 signed-by=/etc/other.gpg ] https://other.example bookworm main\n"
                "deb http://m.example/security bookworm-security main\n"
                "deb [arch=amd64 trusted=yes] https://m.example/debian bookworm contrib main\n"
            ),
            "https://m.example/debian",
        ),
        ("a.list", "deb\ndeb [\ndeb http://m.example\n\n", GENERAL),
        ("a.list.save", "deb http://m.example/debian trixie main\n", GENERAL),
    ],
)
def test_mirror(root: Path, name: str, text: str, mirror: str) -> None:
    (root / "etc/apt/sources.list.d" / name).write_text(text)
    assert find_mirror(root) == mirror


def test_mirror_of_sources_list(root: Path) -> None:
    (root / "etc/apt/sources.list").write_text("deb http://m.example/debian bookworm main\n")
    assert find_mirror(root) == "http://m.example/debian"


def test_mirror_where_there_is_no_apt(tmp_path: Path) -> None:
    assert find_mirror(tmp_path) == GENERAL


def test_entry_is_checked_with_debians_keys(root: Path) -> None:
    keyring = root / "usr/share/keyrings/debian-archive-keyring.gpg"
    assert source_entry(root) == f"deb-src [signed-by={keyring}] {GENERAL} trixie main\n"
    keyring.unlink()
    with pytest.raises(HostError, match="apt-get install debian-archive-keyring"):
        source_entry(root)


FETCHES = """
case "$*" in
*update) cat "$source_list" ;;
*) echo tarball > qemu_10.0.13+ds.orig.tar.xz ;;
esac
"""


def write_apt(programs: Path, text: str) -> Path:
    """Write an apt-get that notes its arguments; returns the file that it notes them in."""
    calls = programs.parent / "apt-calls"
    write_program(
        programs / "apt-get",
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        'for word; do case "$word" in Dir::Etc::sourcelist=*) source_list=${word#*=};; esac; done\n'
        f"{text}\n",
    )
    return calls


async def test_fetch(root: Path, programs: Path, tmp_path: Path) -> None:
    (root / "etc/apt/sources.list.d/debian.sources").write_text(DEB822)
    calls = write_apt(programs, FETCHES)
    runner = Runner(tmp_path / "log")
    fetched = await fetch_debian_source(tmp_path / "work", runner, root)
    assert fetched.read_text() == "tarball\n"
    assert source_entry(root) in runner.log.read_text()
    update, source = calls.read_text().splitlines()
    assert source.endswith(" source --download-only --tar-only --only-source qemu")
    for call in (update, source):
        assert f"-o Dir::State={tmp_path}/work/state " in call
        assert f"-o Dir::Cache={tmp_path}/work/cache " in call
        assert "-o Dir::Etc::sourceparts=/dev/null " in call
        assert "-o APT::Get::AllowUnauthenticated=false " in call
        assert "-o Acquire::AllowInsecureRepositories=false " in call


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            "echo '  The key is not available: NO_PUBKEY 6ED0E7B82643E131'; exit 100",
            HostError,
            ["cannot be checked", "apt-get install debian-archive-keyring", "--source"],
        ),
        (
            "echo 'E: The repository is not signed.'; exit 100",
            HostError,
            ["cannot be checked", "apt-get install debian-archive-keyring"],
        ),
        (
            "echo noise; echo \"E: Could not resolve 'deb.debian.org'\" >&2; exit 100",
            BuildError,
            [f"({GENERAL} trixie) failed: E: Could not resolve 'deb.debian.org'", "log"],
        ),
        ("exit 0", BuildError, ["brought no tarball"]),
    ],
)
async def test_fetch_that_fails(
    root: Path,
    programs: Path,
    tmp_path: Path,
    text: str,
    error: type[HostError | BuildError],
    words: list[str],
) -> None:
    write_apt(programs, text)
    with pytest.raises(error) as caught:
        await fetch_debian_source(tmp_path / "work", Runner(tmp_path / "log"), root)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_no_apt_here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"no apt-get here .* with --source"):
        await fetch_debian_source(tmp_path / "work", Runner(tmp_path / "log"), root)


needs_keys = pytest.mark.skipif(
    not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
    reason="Debian's keys are not installed",
)


@needs_keys
async def test_source_is_fetched_once(
    options: BuildOptions, tree: Path, programs: Path, tmp_path: Path
) -> None:
    name = "qemu_10.0.5+ds.orig.tar.xz"
    calls = write_apt(
        programs,
        f'case "$*" in *update) ;; *) tar -C {tree.parent} -cJf {name} qemu-10.0.5 ;; esac',
    )
    options = replace(options, source=None)
    first = await build_qemu(options)
    assert first.manifest.source == name
    assert options.cache is not None
    tarball = options.cache / "sources" / name
    assert first.manifest.source_sha256 == hashlib.sha256(tarball.read_bytes()).hexdigest()
    # Neither another build of it, nor the same one without the tarball, needs the network.
    assert (await build_qemu(replace(options, debug=True))).cached is False
    tarball.unlink()
    assert (await build_qemu(options)).path == first.path
    assert len(calls.read_text().splitlines()) == 2
    (tarball.parent / "debian.json").write_text("{")  # that is no reason to fail
    assert (await build_qemu(options)).manifest.source == name
    assert len(calls.read_text().splitlines()) == 4


@needs_keys
async def test_damaged_tarball_is_not_built(
    options: BuildOptions, tree: Path, programs: Path
) -> None:
    name = "qemu_10.0.5+ds.orig.tar.xz"
    write_apt(
        programs,
        f'case "$*" in *update) ;; *) tar -C {tree.parent} -cJf {name} qemu-10.0.5 ;; esac',
    )
    options = replace(options, source=None)
    await build_qemu(options)
    assert options.cache is not None
    (options.cache / "sources" / name).write_bytes(b"other")
    with pytest.raises(BuildError, match="was changed meanwhile"):
        await build_qemu(replace(options, debug=True))
