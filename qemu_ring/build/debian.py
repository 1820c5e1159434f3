"""Debian's QEMU source, fetched with apt; the system's own configuration stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from qemu_ring.errors import BuildError, HostError
from qemu_ring.programs import Runner

__all__ = ["DEFAULT_VERSION", "SUITES", "fetch_debian_source", "find_mirror", "source_entry"]

SUITES = {"7.2": "bookworm", "10.0": "trixie"}
"""Debian's release that has a QEMU version; newer ones come to rest in none yet."""

DEFAULT_VERSION = "10.0"
# The tarball is 7.2.0, and the project's stable updates are among Debian's patches.
_UPDATED_BY_PATCHES = frozenset({"7.2"})
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
_KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
_ROOT = Path("/")
# Names that other makers' repositories do not use for suites of their own ("stable" they do).
_SUITES = frozenset({"bullseye", "bookworm", "trixie", "forky", "duke", "sid"})

# Settings of the system's that must not hold here: a default release that our one source
# does not have, pins, and leave to take what nobody signed.
_OPTIONS = {
    "Dir::Etc::sourceparts": "/dev/null",
    "Dir::Etc::preferences": "/dev/null",
    "Dir::Etc::preferencesparts": "/dev/null",
    "APT::Default-Release": "",
    "APT::Get::AllowUnauthenticated": "false",
    "APT::Update::Error-Mode": "any",
    "Acquire::AllowInsecureRepositories": "false",
    "Acquire::AllowWeakRepositories": "false",
    "Acquire::AllowDowngradeToInsecureRepositories": "false",
    "Acquire::Languages": "none",
}


def find_mirror(root: Path = _ROOT) -> str:
    """URI of the mirror that the system's own sources name for Debian's main.

    It is Debian's general one where they name none, as on Ubuntu.

    Args:
        root: directory that holds etc/apt.
    """
    etc = root / "etc/apt"
    parts = sorted((etc / "sources.list.d").glob("*"))
    for file in [etc / "sources.list", *parts]:
        if file.suffix not in {".list", ".sources"} or not file.is_file():
            continue  # apt takes no notice of others either
        text = file.read_text(errors="replace")
        entries = _deb822(text) if file.suffix == ".sources" else _one_line(text)
        for uri, suites, components, keyring in entries:
            is_debian = "main" in components and not _SUITES.isdisjoint(suites)
            # An entry with another key is another maker's, whatever its suite is called.
            is_debian = is_debian and (not keyring or "debian-archive" in keyring)
            if is_debian and not uri.startswith("cdrom:"):
                return uri
    return _DEFAULT_MIRROR


def source_entry(root: Path = _ROOT, version: str = DEFAULT_VERSION) -> str:
    """The line of sources.list that gives the sources of Debian's release with a QEMU version.

    Args:
        root: directory that holds etc/apt and Debian's keys.
        version: one of `SUITES`.

    Raises:
        HostError: Debian's keys are not there to check them with.
    """
    keyring = root / _KEYRING
    if not keyring.exists():
        raise HostError(
            "Debian's signing keys are not installed",
            hint="install them: apt-get install debian-archive-keyring; or name a QEMU source",
        )
    return f"deb-src [signed-by={keyring}] {find_mirror(root)} {SUITES[version]} main\n"


async def fetch_debian_source(
    work: Path, runner: Runner, root: Path = _ROOT, version: str = DEFAULT_VERSION
) -> Path:
    """Download the source of Debian's qemu, as the project released it less its binary blobs.

    It is the "orig" tarball, without the changes that Debian makes to it. Where the project's
    stable updates are among these, they are applied, and the result is a tarball as well.

    Args:
        work: a directory of this call's own; the tarball is in it afterwards.
        runner: runs apt.
        root: directory that holds etc/apt and Debian's keys.
        version: one of `SUITES`.

    Raises:
        HostError: there is no apt, no dpkg-source where it takes one, or there are no keys to
            check what is fetched.
        BuildError: it could not be fetched, or its signature could not be checked.
    """
    patched = version in _UPDATED_BY_PATCHES
    if shutil.which("apt-get") is None:
        raise HostError(
            "there is no apt-get here to fetch Debian's QEMU source",
            hint="name a QEMU tarball or source directory",
        )
    if patched and shutil.which("dpkg-source") is None:
        raise HostError(
            "there is no dpkg-source here to unpack Debian's QEMU source",
            hint="install it: apt-get install dpkg-dev; or name a QEMU source",
        )
    entry = source_entry(root, version)
    for directory in ("state/lists/partial", "cache/archives/partial", "fetched"):
        (work / directory).mkdir(parents=True)
    sources = work / "debian.list"
    sources.write_text(entry)
    own = {
        "Dir::State": work / "state",
        "Dir::Cache": work / "cache",
        "Dir::Etc::sourcelist": sources,
    }
    options = [
        word for name, value in {**_OPTIONS, **own}.items() for word in ("-o", f"{name}={value}")
    ]
    fetched = work / "fetched"
    suite = f"{entry.split()[2]} {SUITES[version]}"
    what = f"fetching QEMU's source with apt-get ({suite})"
    lines: list[str] = []
    try:
        await runner.run(
            what, "apt-get", *options, "update", cwd=fetched, timeout=600, on_line=lines.append
        )
        await runner.run(
            what,
            *("apt-get", *options, "source", "--only-source"),
            *([] if patched else ["--download-only", "--tar-only"]),
            "qemu",
            cwd=fetched,
            timeout=1800,
        )
    except BuildError as error:
        if any("NO_PUBKEY" in line or "is not signed" in line for line in lines):
            raise HostError(
                f"the signature of {suite} cannot be checked: its key is not in {root / _KEYRING}",
                hint="bring the keys up to date: apt-get install debian-archive-keyring; or name "
                "a QEMU source",
            ) from error
        raise
    found = sorted(fetched.glob("qemu_*.dsc" if patched else "qemu_*.orig.tar.*"))
    if len(found) != 1:
        raise BuildError(f"{what} brought no tarball", hint=f"the full log is {runner.log}")
    return await _pack(found[0], runner) if patched else found[0]


async def _pack(description: Path, runner: Runner) -> Path:
    """Make a tarball of the tree that apt-get has unpacked and patched beside a .dsc file.

    The same tree makes the same tarball, by which builds of before are found.
    """
    fetched = description.parent
    tarball = fetched / f"{description.stem}.tar.gz"
    trees = [path for path in fetched.glob("qemu-*") if path.is_dir()]
    if len(trees) != 1:
        raise BuildError(
            f"{description.name} was not unpacked", hint=f"the full log is {runner.log}"
        )
    await runner.run(
        f"packing {trees[0].name}",
        *("tar", "--create", "--use-compress-program=gzip -n", "--file", tarball),
        *("--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"),
        *("--mode=go=rX,u+rw,a-s", "--exclude=.pc", trees[0].name),
        cwd=fetched,
        timeout=600,
    )
    return tarball


_Entry = tuple[str, list[str], list[str], str]  # URI, suites, components, keyring


def _one_line(text: str) -> Iterator[_Entry]:
    """Entries of a sources.list: deb [option=value ...] URI SUITE COMPONENT..."""
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words or words[0] not in {"deb", "deb-src"}:
            continue
        options = ""
        if len(words) > 1 and words[1].startswith("["):
            options, _, rest = " ".join(words[1:]).partition("]")
            words = [words[0], *rest.split()]
        if len(words) > 3:
            keys = [o for o in options.strip("[ ").split() if o.startswith("signed-by=")]
            yield words[1], [words[2]], words[3:], " ".join(keys)


def _deb822(text: str) -> Iterator[_Entry]:
    """Entries of a .sources file: paragraphs of fields, which may go on in indented lines."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in "\n".join(line.rstrip() for line in lines).split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')} {line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in {
            "no",
            "false",
            "0",
            "off",
            "without",
            "disable",
        }:
            continue
        if not {"deb", "deb-src"}.isdisjoint(fields.get("types", "").split()):
            for uri in fields.get("uris", "").split():
                suites, components = fields.get("suites", ""), fields.get("components", "")
                yield uri, suites.split(), components.split(), fields.get("signed-by", "")
