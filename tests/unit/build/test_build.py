"""Builds of a stand-in source: what comes out, what is built anew, and what errors say."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.build import BuildError, BuildOptions, BuildProgress, BuiltQemu, build_qemu
from qemu_ring.errors import QemuRingError, UsageError
from tests.unit.build.conftest import set_meson, set_old_meson


def says(built: BuiltQemu) -> str:
    return subprocess.run([built.path], capture_output=True, text=True, check=True).stdout


def snapshot(tree: Path) -> dict[str, tuple[int, int]]:
    paths = {str(path): path.lstat() for path in [tree, *tree.rglob("*")]}
    return {name: (status.st_mode, status.st_mtime_ns) for name, status in paths.items()}


def cache_of(options: BuildOptions) -> Path:
    assert options.cache is not None
    return options.cache


def leftovers(options: BuildOptions) -> list[Path]:
    """What is in the cache's work directory, or in its builds but not whole."""
    cache = cache_of(options)
    halves = [p for p in cache.glob("builds/*") if not (p / "manifest.json").exists()]
    return [*cache.glob("work/*"), *halves]


async def test_tree_is_patched_and_built_and_only_read(options: BuildOptions, tree: Path) -> None:
    (tree / "VERSION").chmod(0o444)
    before = snapshot(tree)
    stages: list[BuildProgress] = []
    built = await build_qemu(options, on_progress=stages.append)
    assert says(built) == "QEMU emulator version 10.0.5, patched\n"
    assert built.path.is_relative_to(cache_of(options) / "builds")
    assert built.cached is False
    assert built.manifest.version == "10.0.5"
    assert built.manifest.patches == ["0001-say-patched.patch"]
    assert built.manifest.compiler == "stand-in compiler 1.0"
    assert built.manifest.sha256 == hashlib.sha256(built.path.read_bytes()).hexdigest()
    assert "--enable-kvm" in built.manifest.configure
    assert snapshot(tree) == before
    assert leftovers(options) == []
    assert stages[-2:] == [BuildProgress("compiling", 1, 2), BuildProgress("compiling", 2, 2)]


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
async def test_tarball(options: BuildOptions, tree: Path, tmp_path: Path, compression: str) -> None:
    tarball = tmp_path / f"qemu.tar.{compression}"
    with tarfile.open(tarball, f"w:{compression}") as file:  # type: ignore[call-overload]
        file.add(tree, "qemu-10.0.5")
    options = replace(options, source=tarball)
    built = await build_qemu(options)
    assert says(built) == "QEMU emulator version 10.0.5, patched\n"
    assert built.manifest.source_sha256 == hashlib.sha256(tarball.read_bytes()).hexdigest()
    assert (await build_qemu(options)).cached is True


async def test_configure_gets_the_options_and_no_flags_of_the_users(
    options: BuildOptions, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = tmp_path / "configured"
    monkeypatch.setenv("CONFIGURED", str(configured))
    monkeypatch.setenv("CFLAGS", "-O0")
    configure = tree / "configure"
    configure.write_text(configure.read_text() + 'echo "flags: $CFLAGS" >> "$CONFIGURED"\n')
    await build_qemu(replace(options, debug=True))
    text = configured.read_text()
    for option in ("--target-list=x86_64-softmmu", "--enable-kvm", "--enable-tcg"):
        assert f" {option} " in text
    assert "--with-pkgversion=qemu-ring " in text
    assert "--enable-debug\n" in text
    assert text.endswith("flags: \n")


async def test_second_call_builds_nothing(
    options: BuildOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIGURED", str(tmp_path / "configured"))
    first = await build_qemu(options)
    second = await build_qemu(replace(options, jobs=1))  # no part of what is built
    assert second == replace(first, cached=True)
    assert (tmp_path / "configured").read_text().count("configured") == 1


def change_source(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    (tree / "program").write_text((tree / "program").read_text() + "# more\n")
    return options


def change_mode(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    (tree / "steps").chmod(0o755)
    return options


def change_link(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    (tree / "link").unlink()
    (tree / "link").symlink_to("elsewhere")
    return options


def change_patch(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    assert options.patches is not None
    patch = options.patches / "qemu-10.0/0001-say-patched.patch"
    patch.write_text(patch.read_text().replace("$(echo patched)", "$(echo re-patched)"))
    return options


def change_series(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    assert options.patches is not None
    (options.patches / "qemu-10.0/series").write_text("# none\n")
    return options


def change_options(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    return replace(options, debug=True)


def change_compiler(options: BuildOptions, tree: Path, programs: Path) -> BuildOptions:
    (programs / "cc").write_text("#!/bin/sh\necho stand-in compiler 1.1\n")
    return options


Change = Callable[[BuildOptions, Path, Path], BuildOptions]


@pytest.mark.parametrize(
    "change",
    [
        change_source,
        change_mode,
        change_link,
        change_patch,
        change_series,
        change_options,
        change_compiler,
    ],
)
async def test_change_is_built_anew(
    options: BuildOptions, tree: Path, programs: Path, change: Change
) -> None:
    first = await build_qemu(options)
    second = await build_qemu(change(options, tree, programs))
    assert second.cached is False
    assert second.path != first.path
    assert first.path.exists()


async def test_series_of_another_version_is_no_reason_to_build(
    options: BuildOptions, tree: Path
) -> None:
    first = await build_qemu(options)
    assert options.patches is not None
    other = options.patches / "qemu-10.2"
    other.mkdir()
    (other / "series").write_text("# none\n")
    assert await build_qemu(options) == replace(first, cached=True)
    (tree / "VERSION").write_text("10.2.2\n")
    second = await build_qemu(options)
    assert second.cached is False
    assert (second.manifest.series, second.manifest.patches) == ("10.2", [])


async def test_meson_is_the_one_that_the_source_brings_along(
    options: BuildOptions, tree: Path
) -> None:
    pythons = []
    for version in ("1.5.0", "1.9.0"):
        set_meson(tree, version)
        await build_qemu(options)
        newest = max(cache_of(options).glob("logs/*.log"), key=lambda log: log.stat().st_mtime_ns)
        (python,) = re.findall(r" --python=(\S+)/python ", newest.read_text())
        pythons.append(Path(python))
    for directory, version in zip(pythons, ("1.5.0", "1.9.0"), strict=True):
        assert list(directory.parent.glob(f"lib/python*/site-packages/meson-{version}.dist-info"))


async def test_meson_of_a_source_before_8_1(
    options: BuildOptions, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells its oldest meson in configure, takes no --python with one, and never downloads."""
    monkeypatch.setenv("CONFIGURED", str(tmp_path / "configured"))
    set_old_meson(tree, "0.61.5")
    built = await build_qemu(options)
    words = (tmp_path / "configured").read_text().split()
    (meson,) = [Path(word.removeprefix("--meson=")) for word in words if "--meson=" in word]
    assert list(meson.parents[1].glob("lib/python*/site-packages/meson-0.61.5.dist-info"))
    assert not [word for word in words if word.startswith("--python=")]
    assert "--disable-download" not in words
    assert "--disable-install-blobs" in words
    assert await build_qemu(options) == replace(built, cached=True)


async def test_configure_is_told_not_to_download_where_it_can(
    options: BuildOptions, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFIGURED", str(tmp_path / "configured"))
    configure = tree / "configure"
    configure.write_text(configure.read_text() + "# --disable-download)\n")
    await build_qemu(options)
    assert " --disable-download " in (tmp_path / "configured").read_text()


@pytest.mark.parametrize(("old", "new"), [("[meson]", "[tools]"), ("pycotap", "other"), ("", None)])
async def test_source_that_tells_no_meson(
    options: BuildOptions, tree: Path, old: str, new: str | None
) -> None:
    file = tree / "pythondeps.toml"
    text = file.read_text()
    file.unlink()
    if new is not None:
        file.write_text(text.replace(old, new))
    with pytest.raises(UsageError, match="does not tell which meson and pycotap it takes"):
        await build_qemu(options)
    assert leftovers(options) == []


async def test_git_and_meson_directories_are_no_source(options: BuildOptions, tree: Path) -> None:
    await build_qemu(options)
    (tree / ".git").mkdir()
    (tree / ".git" / "HEAD").write_text("ref: refs/heads/master")
    (tree / "build/meson-private").mkdir(parents=True)
    (tree / "build/object.o").write_text("")
    assert (await build_qemu(options)).cached is True


@pytest.mark.parametrize("damage", ["no manifest", "manifest cut", "binary cut", "no binary"])
async def test_half_a_build_is_none(options: BuildOptions, damage: str) -> None:
    built = await build_qemu(options)
    manifest = built.path.with_name("manifest.json")
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "manifest cut":
        manifest.write_text(manifest.read_text()[:100])
    elif damage == "binary cut":
        built.path.write_bytes(built.path.read_bytes()[:10])
    else:
        built.path.unlink()
    again = await build_qemu(options)
    assert again.cached is False
    assert says(again) == "QEMU emulator version 10.0.5, patched\n"
    assert (await build_qemu(options)).cached is True


async def test_what_a_killed_build_left_is_removed(options: BuildOptions) -> None:
    stale = cache_of(options) / "work" / "stale" / "source"
    for cached in (False, True):
        stale.mkdir(parents=True)
        (stale / "file").write_text("")
        assert (await build_qemu(options)).cached is cached
        assert leftovers(options) == []


def no_version(tree: Path) -> Path:
    (tree / "VERSION").unlink()
    return tree


def foreign_tarball(tree: Path) -> Path:
    with tarfile.open(tree.parent / "x.tar.gz", "w:gz") as file:
        file.add(tree / "VERSION", "x/VERSION")
    return tree.parent / "x.tar.gz"


def two_directories(tree: Path) -> Path:
    with tarfile.open(tree.parent / "x.tgz", "w:gz") as file:
        file.add(tree, "one")
        file.add(tree, "two")
    return tree.parent / "x.tgz"


def other_version(tree: Path) -> Path:
    (tree / "VERSION").write_text("9.2.4\n")
    return tree


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (lambda tree: tree / "none", ["/none does not exist"]),
        (lambda tree: tree / "VERSION", ["VERSION is no tarball"]),
        (lambda tree: tree.parent, ["is no QEMU source"]),
        (no_version, ["is no QEMU source"]),
        (foreign_tarball, ["x.tar.gz holds no QEMU source"]),
        (two_directories, ["x.tgz holds no QEMU source"]),
        (other_version, ["no patches for QEMU 9.2.4, only for 10.0.x"]),
    ],
)
async def test_source_that_is_none(
    options: BuildOptions, tree: Path, source: Callable[[Path], Path], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        await build_qemu(replace(options, source=source(tree)))
    for word in words:
        assert word in str(caught.value)
    assert leftovers(options) == []


@pytest.mark.parametrize(
    ("tree_says", "patch", "why"),
    [
        (("# three", "# tree"), ("", ""), "0001-say-patched.patch does not apply: hunk 1 of prog"),
        (("unpatched", "patched"), ("", ""), "it is applied already, or part of it: program"),
        (("", ""), ("/program", "/hw/missing.c"), "can't find file to patch"),
        (("", ""), (" # one\n", "junk\n"), "malformed patch"),
    ],
)
async def test_patch_that_does_not_apply(
    options: BuildOptions, tree: Path, tree_says: tuple[str, str], patch: tuple[str, str], why: str
) -> None:
    assert options.patches is not None
    for file, change in [
        (tree / "program", tree_says),
        (options.patches / "qemu-10.0/0001-say-patched.patch", patch),
    ]:
        file.write_text(file.read_text().replace(*change))
    with pytest.raises(BuildError) as caught:
        await build_qemu(options)
    assert why in caught.value.message
    assert "the series is for QEMU 10.0" in caught.value.hint
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 4
    assert leftovers(options) == []


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        (
            "configure",
            "#!/bin/sh\necho checking\necho '../meson.build:3:2: ERROR: no glib' >&2\nexit 1\n",
            "configuring QEMU failed: ../meson.build:3:2: ERROR: no glib",
        ),
        (
            "steps",
            "echo 'FAILED: a.o'; echo 'a.c:7:1: error: oops'; echo 'ninja: stopped'; exit 1\n",
            "compiling QEMU failed: a.c:7:1: error: oops",
        ),
        ("steps", "exit 7\n", "compiling QEMU failed: [1/2] Compiling"),
        (
            "steps",
            "echo '#!/bin/false' > qemu-system-x86_64; chmod +x qemu-system-x86_64\n",
            "the QEMU just built does not start",
        ),
    ],
)
async def test_failure_shows_the_last_errors_and_the_log(
    options: BuildOptions, tree: Path, file: str, text: str, why: str
) -> None:
    (tree / file).write_text(text)
    with pytest.raises(BuildError) as caught:
        await build_qemu(options)
    assert caught.value.message == why
    (log,) = cache_of(options).glob("logs/*.log")
    assert caught.value.hint.endswith(str(log))
    assert "--- configuring QEMU" in log.read_text()
    assert leftovers(options) == []


async def test_cache_that_cannot_be_written(options: BuildOptions, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QemuRingError, match="Not a directory") as caught:
        await build_qemu(replace(options, cache=tmp_path / "file" / "cache"))
    assert caught.value.exit_status == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"version": "9.2"}, "version is 7.2 or 10.0, not 9.2; of another, name a source"),
        (
            {"version": "7.2", "source": Path("/qemu")},
            "version is of Debian's source, and another is named",
        ),
    ],
)
def test_version_that_cannot_be(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildOptions(**arguments)


def test_no_jobs() -> None:
    with pytest.raises(UsageError, match="jobs is at least 1, not"):
        BuildOptions(jobs=0)


def clone(tree: Path) -> None:
    """Leave a source as a git clone has it: it names two subprojects, and holds one."""
    for name in ("keycodemapdb", "berkeley-softfloat-3"):
        (tree / "subprojects" / name).mkdir(parents=True)
        (tree / f"subprojects/{name}.wrap").write_text("[wrap-git]\n")
    (tree / "subprojects/keycodemapdb/meson.build").touch()


async def test_clone_without_its_subprojects(options: BuildOptions, tree: Path) -> None:
    clone(tree)
    with pytest.raises(UsageError, match=r"lacks the subprojects berkeley-softfloat-3, as") as told:
        await build_qemu(options)
    assert told.value.hint == f"run: (cd {tree} && meson subprojects download berkeley-softfloat-3)"
    assert list(cache_of(options).glob("logs/*")) == []  # nothing was begun
    (tree / "subprojects/berkeley-softfloat-3/meson.build").touch()
    assert says(await build_qemu(options)) == "QEMU emulator version 10.0.5, patched\n"


async def test_tarball_of_a_clone(options: BuildOptions, tree: Path, tmp_path: Path) -> None:
    clone(tree)
    tarball = tmp_path / "qemu.tar.gz"
    with tarfile.open(tarball, "w:gz") as file:
        file.add(tree, "qemu-10.0.5")
    with pytest.raises(UsageError, match=r"qemu\.tar\.gz lacks the subprojects") as told:
        await build_qemu(replace(options, source=tarball))
    assert told.value.hint == "name a release tarball, which holds them"
