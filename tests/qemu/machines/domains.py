"""Domains of two libvirt daemons: QEMUs of another user, if the test runs as root.

libvirt starts both QEMUs, the second one waiting, and finds out from their events where the guest
is. Under TCG, because that user may not use KVM.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from qemu_ring.guest import image_bytes, layout
from tests.qemu.libvirt import Libvirt, running_libvirt
from tests.qemu.machines.parts import MIB, PLUGS
from tests.qemu.machines.programs import FIRMWARE
from tests.qemu.machines.qemus import make_images
from tests.qemu.machines.run import Binaries, command
from tests.qemu.machines.ways import Route
from tests.waiting import until

_NAME = "theirs"
DOMAIN = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <uuid>0d4a7e5c-3c9b-4b57-9f0e-6c1c3d1f7a10</uuid>
  <memory unit='MiB'>32</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='{machine}'>hvm</type>
    <loader type='rom'>{shared}/firmware</loader>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>{qemu}</emulator>
    <disk type='file'>
      <driver name='qemu' type='qcow2'/>
      <source file='{shared}/disk.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <controller type='scsi' model='virtio-scsi'/>
    <controller type='usb' model='qemu-xhci'/>
    <input type='tablet' bus='usb'/>
    <interface type='udp'>
      <source address='127.0.0.1' port='{port}'><local address='127.0.0.1' port='{port}'/></source>
      <model type='virtio'/>
    </interface>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <video><model type='virtio'/></video>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-qmp'/>
    <qemu:arg value='unix:{monitor},server=on,wait=off'/>
    {more}
  </qemu:commandline>
</domain>
"""


@dataclass(frozen=True)
class Place:
    """A libvirt daemon, and the QEMU that it starts for the domain.

    Args:
        stops: the guest has to be stopped while it is migrated from there: under TCG, QEMU before
            9.0 does not send all that one writes which runs.
    """

    libvirt: Libvirt
    qemu: Path
    shared: Path
    machine: str
    stops: bool

    @property
    def monitor(self) -> Path:
        """The domain's second one, for who migrates it."""
        return self.libvirt.home / "second.qmp"

    async def virsh(self, *words: str) -> str:
        return await asyncio.to_thread(self.libvirt.virsh, *words)

    async def create(self, *, incoming: bool) -> None:
        """Start the domain; incoming, it waits for its guest."""
        words = await FIRMWARE.arguments(self.shared, PLUGS[0])
        words += ["-incoming", "defer"] if incoming else []
        content = DOMAIN.format(
            name=_NAME,
            machine=self.machine,
            qemu=self.qemu,
            shared=self.shared,
            monitor=self.monitor,
            port=20000 + os.getpid() % 20000,
            more="".join(f"<qemu:arg value='{word}'/>" for word in words),
        )
        path = self.libvirt.home / "domain.xml"
        path.write_text(content)
        await self.virsh("create", str(path), *(["--paused"] if incoming else []))

    async def writes(self) -> int:
        """What the guest has counted, as libvirt is told."""
        what = f"xp /2gx {layout.STATISTICS:#x}"
        text = await self.virsh("qemu-monitor-command", _NAME, "--hmp", what)
        return int(re.findall(r"0x([0-9a-f]+)", text)[-1], 16)

    async def stop_if_it_must(self) -> None:
        """Before it is migrated from here."""
        if self.stops:
            await self.virsh("suspend", _NAME)

    async def goes_on(self, count: int = 0, *, start: bool = False) -> None:
        """Wait until the guest has counted on; and libvirt has to know that it runs."""
        if start:
            await self.virsh("resume", _NAME)
        await self._has("running")

        async def counts() -> bool:
            return await self.writes() > count

        await until(counts, "the guest goes on")

    async def is_left(self) -> int:
        """The guest has gone elsewhere: what it had counted. libvirt keeps the domain, paused."""
        await self._has("paused")
        count = await self.writes()
        await self.virsh("destroy", _NAME)
        return count

    async def _has(self, state: str) -> None:
        async def is_so() -> bool:
            return await self.virsh("domstate", _NAME) == state

        await until(is_so, f"libvirt has the domain as {state}")


@asynccontextmanager
async def two_places(route: Route, binaries: Binaries) -> AsyncIterator[tuple[Place, Place]]:
    """Two daemons, with a QEMU each that their user may run, and a folder that they share."""
    with ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="qemu-ring-")
        shared = Path(stack.enter_context(temporary))
        (shared / "firmware").write_bytes(image_bytes())
        await make_images(binaries["distribution"], shared, 4 * MIB)
        found = []
        for name in (route.qemus * 2)[:2]:
            home = stack.enter_context(tempfile.TemporaryDirectory(prefix="qemu-ring-libvirt-"))
            libvirt = stack.enter_context(running_libvirt(Path(home)))
            qemu = binaries[name]
            if name == "patched":  # built where other users may not go
                qemu = Path(shutil.copy(qemu, shared / "qemu-system-x86_64"))
            machine = "pc" if route.version is None else f"pc-i440fx-{route.version}"
            place = Place(libvirt, qemu, shared, machine, stops=name == "distribution")
            stack.callback(_destroy, place)
            found.append(place)
        _give_all(found[0].libvirt, shared)
        yield found[0], found[1]


def _give_all(libvirt: Libvirt, folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        libvirt.give(path)


def _destroy(place: Place) -> None:
    if place.libvirt.virsh("list", "--name"):
        place.libvirt.virsh("destroy", _NAME)


async def moved(here: Place, there: Place, *options: str) -> None:
    """Migrate the domain, and let libvirt find out."""
    await there.create(incoming=True)
    await here.stop_if_it_must()
    found = await command(str(here.monitor), str(there.monitor), *options)
    assert found["status"] == "completed"
    count = await here.is_left()
    await there.goes_on(count, start=here.stops)


async def to_and_fro(here: Place, there: Place) -> None:
    """Start the domain, migrate it and back; libvirt can work with it afterwards."""
    await here.create(incoming=False)
    await here.goes_on()
    await moved(here, there)
    await moved(there, here)
    await here.virsh("suspend", _NAME)
    count = await here.writes()
    await here.virsh("resume", _NAME)
    await here.goes_on(count)
