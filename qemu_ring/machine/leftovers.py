"""Files and folders that go when their owner does, kill -9 included."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["Leftovers", "new_folder_name"]

# Waits for the end of its standard input, which is the owner's end.
_WATCH = """trap '' HUP INT TERM
cat > /dev/null
rm -f -- "$@"
test -z "$0" || rm -rf -- "$0"
"""


class Leftovers:
    """Names that shall not outlive this process; `close` removes them, too.

    A small process waits for this one's end, and removes them if this one cannot. It is
    there before they are: make them after this.

    Args:
        files: or sockets.
        folder: and all in it; one of our own.
    """

    def __init__(self, *files: Path, folder: Path | None = None) -> None:
        self._files = [path.absolute() for path in files]
        self._folder = None if folder is None else folder.absolute()
        its_end, self._our_end = os.pipe()
        try:
            self._watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, str(self._folder or ""), *map(str, self._files)],
                stdin=its_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is not for it
            )
        except BaseException:
            os.close(self._our_end)
            raise
        finally:
            os.close(its_end)

    def remove(self) -> None:
        """Remove them now; they may come again until `close`."""
        for path in self._files:
            with suppress(OSError):
                path.unlink()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        """Remove them; may be called again."""
        if self._our_end < 0:
            return
        self.remove()
        os.close(self._our_end)
        self._our_end = -1
        self._watcher.kill()
        self._watcher.wait()


def new_folder_name(parent: Path | None = None) -> Path:
    """A name for a temporary folder, which is yet to be made; it names our process.

    Args:
        parent: where; None for where temporary files belong.
    """
    name = f"qemu-ring-{os.getpid()}-{secrets.token_hex(4)}"
    return Path(parent or tempfile.gettempdir(), name).absolute()
