"""One build: from a source to a patched, compiled, cached QEMU."""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import AsyncExitStack
from pathlib import Path

from qemu_ring.build.cache import BINARY, Cache
from qemu_ring.build.debian import DEFAULT_VERSION, fetch_debian_source
from qemu_ring.build.options import BuildOptions, BuildProgress, BuiltQemu, Manifest, OnProgress
from qemu_ring.build.patches import Patches, Series
from qemu_ring.build.source import (
    QemuSource,
    file_sha256,
    find_source,
    in_thread,
    qemu_version,
    unpack,
)
from qemu_ring.build.tools import configure_options, libc, make_tools, require_dependencies
from qemu_ring.errors import BuildError, HostError
from qemu_ring.programs import Runner, output_of

__all__ = ["CONFIGURE", "build_qemu", "built_binary"]

CONFIGURE = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-kvm",
    "--enable-tcg",
    "--enable-trace-backends=log",
    "--enable-gnutls",  # migration over TLS
    "--enable-zstd",  # a compression of multifd
    "--enable-vhost-net",  # devices of guests as they are met, whose writes are logged elsewhere
    "--enable-vhost-user",
    "--disable-docs",
    "--disable-werror",
    "--disable-download",
    "--disable-install-blobs",
    # Debian's source has no firmware; this is where the distributions' packages put it.
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu",
)
_STATUS = re.compile(r"\[(\d+)/(\d+)\] ")  # ninja's, by NINJA_STATUS
_COMPILE_DEADLINE = 3 * 3600.0  # seconds


async def build_qemu(
    options: BuildOptions | None = None, *, on_progress: OnProgress = lambda _: None
) -> BuiltQemu:
    """Build a patched QEMU, or find the one built before of the very same things.

    When cancelled, all it started is ended and what it made is removed. After kill -9 ninja
    and its compilers are ended by the kernel, and the next build removes what they made.

    Args:
        options: what to build; Debian's QEMU 10.0 by default.
        on_progress: called often, from this task.

    Raises:
        UsageError: the source is no QEMU source, or no patches are for its version.
        HostError: what a build needs is missing here, or the cache cannot be used.
        BuildError: a patch does not apply, or QEMU could not be fetched or built.
        DeadlineError: another build took hours.
    """
    options = options or BuildOptions()
    try:
        return await _Build(options, on_progress).run()
    except OSError as error:
        raise HostError(
            f"{error.filename or 'building'}: {error.strerror or error}",
            hint="the cache is in $XDG_CACHE_HOME, or else in ~/.cache",
        ) from error


def built_binary() -> Path | None:
    """The newest QEMU in the cache with the patches of this package, built without --debug.

    One with the options of today goes before those with others, which another version of this
    package may have built. It takes milliseconds, starts nothing and raises nothing.
    """
    try:
        patches = {series.sha256 for series in Patches.load().series.values()}
        cache = Cache()
    except (HostError, OSError):
        return None

    def usable(made: Manifest) -> bool:
        return made.patches_sha256 in patches and not made.debug and made.libc == libc()

    def of_today(made: Manifest) -> bool:
        return usable(made) and made.configure == [*CONFIGURE, _package(made.patches_sha256)]

    built = cache.newest(of_today) or cache.newest(usable)
    return None if built is None else built.path


def _package(patches_sha256: str) -> str:
    """An option by which `--version` and `query-version` tell that it is patched, and how."""
    return f"--with-pkgversion=qemu-ring {patches_sha256[:12]}"


class _Build:
    """One call of `build_qemu`."""

    def __init__(self, options: BuildOptions, on_progress: OnProgress) -> None:
        self.options = options
        self.on_progress = on_progress
        self.cache = Cache(options.cache)
        self.patches = Patches.load(options.patches)
        self.version = options.version or DEFAULT_VERSION  # of Debian's source
        self.compiler = ""

    async def run(self) -> BuiltQemu:
        self._stage("looking for a build of before")
        source = await self._source()
        self.compiler = await require_dependencies()
        if source and (built := self._find(source)):
            await self.cache.tidy()
            return built
        async with AsyncExitStack() as stack:
            wait = lambda: self._stage("waiting for another build to end")  # noqa: E731
            await stack.enter_async_context(self.cache.lock(wait))
            source = await self._source()
            if source is None or not source.path.exists():
                source = await self._fetch()
            if built := self._find(source):  # another one has built it meanwhile
                return built
            work = await stack.enter_async_context(self.cache.work())
            return await self._make(source, work)

    async def _source(self) -> QemuSource | None:
        """The source to build; None if it has to be fetched."""
        if self.options.source is None:
            return self.cache.debian_source(self.version)
        return await find_source(self.options.source)

    async def _fetch(self) -> QemuSource:
        self._stage("fetching Debian's QEMU source")
        async with self.cache.work() as work:
            runner = Runner(self.cache.log("fetch"))
            tarball = await fetch_debian_source(work, runner, version=self.version)
            sha256 = await in_thread(lambda stop: file_sha256(tarball, stop))
            return self.cache.keep_debian_source(self.version, tarball, sha256)

    async def _make(self, source: QemuSource, work: Path) -> BuiltQemu:
        begin = time.monotonic()
        runner = Runner(self.cache.log(source.sha256[:20]))
        self._stage("unpacking")
        unpacked = work / "source"
        unpacked.mkdir()
        tree = await unpack(source, unpacked, runner)
        version = qemu_version(tree)
        series = self.patches.for_version(version).up_to(self.options.part)
        self._stage("applying patches")
        await series.apply(tree, runner)
        self._stage("preparing meson and ninja")
        tools = await make_tools(self.cache.tools(), tree, runner)
        configure = self._configure(series)
        binary = await self._compile(tree, work, tools, configure, runner)
        manifest = Manifest(
            version=version,
            source=str(self.options.source.absolute() if self.options.source else source.path.name),
            source_sha256=source.sha256,
            series=series.version,
            patches=[patch.name for patch in series.patches],
            patches_sha256=series.sha256,
            configure=configure,
            debug=self.options.debug,
            compiler=self.compiler,
            libc=libc(),
            sha256=await in_thread(lambda stop: file_sha256(binary, stop)),
            size=binary.stat().st_size,
            built=time.time(),
            seconds=round(time.monotonic() - begin, 1),
            part=series.part,
        )
        key = hashlib.sha256("\n".join(self._parts(source, series)).encode()).hexdigest()[:20]
        return self.cache.publish(key, binary, manifest)

    async def _compile(
        self, tree: Path, work: Path, tools: Path, configure: list[str], runner: Runner
    ) -> Path:
        build = work / "build"
        build.mkdir()
        self._stage("configuring")
        await runner.run(
            "configuring QEMU",
            tree / "configure",
            *configure_options(tree, tools, configure),
            cwd=build,
            timeout=1200,
            path=[tools],
        )
        self._stage("compiling")
        jobs = self.options.jobs or len(os.sched_getaffinity(0))
        await runner.run(
            "compiling QEMU",
            *("ninja", f"-j{jobs}", BINARY),
            cwd=build,
            timeout=_COMPILE_DEADLINE,
            path=[tools],
            on_line=self._compiled,
        )
        binary = build / BINARY
        if "QEMU" not in (await output_of(str(binary), "--version") or ""):
            raise BuildError("the QEMU just built does not start", hint=f"see {runner.log}")
        return binary

    def _configure(self, series: Series) -> list[str]:
        return [
            *CONFIGURE,
            _package(series.sha256),
            *(["--enable-debug"] if self.options.debug else []),
        ]

    def _parts(self, source: QemuSource, series: Series) -> list[str]:
        """What a build is made of; one that differs in any of it is another."""
        return [source.sha256, series.sha256, self.compiler, libc(), *self._configure(series)]

    def _find(self, source: QemuSource) -> BuiltQemu | None:
        """A build of before, of the very same things.

        A tarball's version, and so its series, is not known here; but the manifest tells it.
        """

        def suits(made: Manifest) -> bool:
            whole = self.patches.series.get(made.series)
            if whole is None or self.options.part not in (*whole.parts, whole.part):
                return False
            series = whole.up_to(self.options.part)
            parts = [made.source_sha256, made.patches_sha256, made.compiler, made.libc]
            return self._parts(source, series) == [*parts, *made.configure]

        return self.cache.newest(suits)

    def _stage(self, stage: str) -> None:
        self.on_progress(BuildProgress(stage))

    def _compiled(self, line: str) -> None:
        if status := _STATUS.match(line):
            self.on_progress(BuildProgress("compiling", int(status[1]), int(status[2])))
