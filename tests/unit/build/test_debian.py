"""Debian's source: which mirror, which keys, what apt is told, and what its errors become."""

from __future__ import annotations

import hashlib
import tarfile
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
    assert source_entry(root, "7.2") == f"deb-src [signed-by={keyring}] {GENERAL} bookworm main\n"
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
    assert source.endswith(" source --only-source --download-only --tar-only qemu")
    for call in (update, source):
        assert f"-o Dir::State={tmp_path}/work/state " in call
        assert f"-o Dir::Cache={tmp_path}/work/cache " in call
        assert "-o Dir::Etc::sourceparts=/dev/null " in call
        assert "-o APT::Get::AllowUnauthenticated=false " in call
        assert "-o Acquire::AllowInsecureRepositories=false " in call


UNPACKS = """
case "$*" in *update) exit ;; esac
touch qemu_7.2+dfsg-7+deb12u18.dsc qemu_7.2+dfsg.orig.tar.xz
mkdir -p qemu-7.2+dfsg/.pc qemu-7.2+dfsg/sub
echo 7.2.22 > qemu-7.2+dfsg/VERSION
echo applied > qemu-7.2+dfsg/.pc/applied-patches
"""


async def test_source_whose_updates_are_debians_patches(
    root: Path, programs: Path, tmp_path: Path
) -> None:
    calls = write_apt(programs, UNPACKS)
    write_program(programs / "dpkg-source", "#!/bin/sh\n")
    digests = set()
    for name in ("1", "2"):
        runner = Runner(tmp_path / f"log{name}")
        fetched = await fetch_debian_source(tmp_path / name, runner, root, "7.2")
        assert fetched.name == "qemu_7.2+dfsg-7+deb12u18.tar.gz"
        with tarfile.open(fetched) as tarball:
            members = tarball.getnames()
        assert members == ["qemu-7.2+dfsg", "qemu-7.2+dfsg/VERSION", "qemu-7.2+dfsg/sub"]
        digests.add(hashlib.sha256(fetched.read_bytes()).hexdigest())
        # The next one is made at another time, with other rights.
        write_apt(programs, f"umask 077\n{UNPACKS}touch -d 2001-01-01 qemu-7.2+dfsg/VERSION\n")
    assert len(digests) == 1
    assert calls.read_text().splitlines()[1].endswith(" source --only-source qemu")


async def test_source_that_apt_did_not_unpack(root: Path, programs: Path, tmp_path: Path) -> None:
    write_apt(programs, "touch qemu_7.2+dfsg-7.dsc")
    write_program(programs / "dpkg-source", "#!/bin/sh\n")
    with pytest.raises(BuildError, match=r"qemu_7\.2\+dfsg-7\.dsc was not unpacked"):
        await fetch_debian_source(tmp_path / "work", Runner(tmp_path / "log"), root, "7.2")


async def test_no_dpkg_source_here(
    root: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_apt(programs, UNPACKS)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(HostError, match="apt-get install dpkg-dev"):
        await fetch_debian_source(tmp_path / "work", Runner(tmp_path / "log"), root, "7.2")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            "echo '  The key is not available: NO_PUBKEY 6ED0E7B82643E131'; exit 100",
            HostError,
            ["cannot be checked", "apt-get install debian-archive-keyring", "name a QEMU source"],
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
    with pytest.raises(HostError, match=r"no apt-get here .*; name a QEMU tarball"):
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
    (tarball.parent / "debian-10.0.json").write_text("{")  # that is no reason to fail
    assert (await build_qemu(options)).manifest.source == name
    assert len(calls.read_text().splitlines()) == 4


@needs_keys
async def test_each_version_has_a_source_of_its_own(
    options: BuildOptions, tree: Path, programs: Path
) -> None:
    new = "qemu_10.0.5+ds.orig.tar.xz"
    write_apt(
        programs,
        f"""case "$*" in
        *update) ;;
        *--tar-only*) tar -C {tree.parent} -cJf {new} qemu-10.0.5 ;;
        *) touch qemu_7.2-1.dsc; cp -a {tree} qemu-7.2 ;;
        esac""",
    )
    write_program(programs / "dpkg-source", "#!/bin/sh\n")
    options = replace(options, source=None)
    old = replace(options, version="7.2")
    for _ in range(2):  # the second time it is there
        assert (await build_qemu(options)).manifest.source == new
        assert (await build_qemu(old)).manifest.source == "qemu_7.2-1.tar.gz"


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
