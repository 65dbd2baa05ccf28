"""One run at a time in an output folder: a lock that lasts as long as the run.

The lock is that of the system on the file `.lock`, which ends with its process, however that ends;
it holds over NFS as far as the server keeps locks. Where a file system has none, the file itself is
the lock, and what is left of a process that was killed is recognised on the same machine.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.files import is_running
from common.training.distributed import World

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[Path, FolderLock] = {}


@contextmanager
def alone(folder: Path, world: World | None = None) -> Iterator[None]:
    """Within it no other run may use the folder, which is made where it is not there.

    Args:
        folder: of the run.
        world: the processes of the run, of which the first one holds the lock.

    Raises:
        ConfigError: another run uses it; the same in every process.
        OSError: the folder cannot be written to.
    """
    world = world or World()
    lock = FolderLock(Path(folder)) if world.main else None
    problem: Exception | None = None
    if lock is not None:
        try:
            lock.take()
        except (ConfigError, OSError) as error:
            problem = error
    refused = world.gather(None if problem is None else str(problem))[0]
    if problem is not None:
        raise problem
    if refused is not None:
        raise ConfigError(refused)
    try:
        yield
    finally:
        if lock is not None:
            lock.free()


def renew(folder: Path) -> bool:
    """Take the lock of this process again where the folder was deleted meanwhile.

    Returns:
        Whether it was.

    Raises:
        ConfigError: another run has made the folder and uses it.
    """
    lock = _held.get(Path(folder).resolve() / NAME)
    return lock is not None and lock.renew()


class FolderLock:
    """The lock of a folder; see `alone`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder.resolve() / NAME
        self._file: int | None = None
        self._made: list[Path] = []

    def take(self) -> None:
        """Take the lock.

        Raises:
            ConfigError: somebody else has it, or the folder is a link to nowhere.
            OSError: the folder cannot be written to.
        """
        for place in (self.folder, *self.folder.parents):
            if place.is_symlink() and not place.exists():
                raise ConfigError(
                    f"{place}: a link to {os.readlink(place)}, which is not there: is its disk "
                    "missing? Mend the link, or choose another folder"
                )
        self._made = [p for p in (self.path.parent, *self.path.parents[1:]) if not p.exists()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path in _held:
            raise ConfigError(f"{self.path.parent}: in use by this very process")
        if fcntl is None or not self._lock():
            self._claim()
        _held[self.path] = self

    def free(self) -> None:
        """Give the lock back, and folders that were made for it alone."""
        _held.pop(self.path, None)
        if self._file is None and _reads(self.path).get("process") != os.getpid():
            return  # the folder is another one's now
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._close()
        for folder in self._made:  # of a run that was refused before it wrote anything
            try:
                folder.rmdir()
            except OSError:
                break

    def renew(self) -> bool:
        """See `renew`."""
        if self._still_there():
            return False
        _held.pop(self.path, None)
        self._close()
        self.take()
        return True

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _still_there(self) -> bool:
        """Whether the file of the lock is still the one that this process has."""
        try:
            now = os.stat(self.path)
        except FileNotFoundError:
            return False
        if self._file is None:
            return bool(_reads(self.path).get("process") == os.getpid())
        return os.path.samestat(now, os.fstat(self._file))

    def _lock(self) -> bool:
        """Ask the system for the lock; False where the file system has no locks."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                # A record lock, which workers that were forked do not inherit.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(file)
                if error.errno in NO_LOCKS:
                    return False
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise self._refusal() from None
                raise
            self._file = file
            if self._still_there():  # and not deleted by its last owner since it was opened
                os.ftruncate(file, 0)
                os.pwrite(file, _owner(), 0)
                return True
            self._close()

    def _claim(self) -> None:
        """Make the file the lock: who gives it its name, with its content, has it."""
        own = self.path.with_name(f"{NAME}.{socket.gethostname()}.{os.getpid()}.tmp")
        own.write_bytes(_owner())
        try:
            while True:
                try:
                    os.link(own, self.path)
                    return
                except FileExistsError:
                    owner = _reads(self.path)
                    here = owner.get("host") == socket.gethostname()
                    if owner and (not here or _lives(owner.get("process"))):
                        raise self._refusal() from None
                    self.path.unlink(missing_ok=True)  # left by a process that was killed
        finally:
            own.unlink(missing_ok=True)

    def _refusal(self) -> ConfigError:
        owner = _reads(self.path)
        who = "another run"
        if owner:
            who = (
                f"process {owner.get('process')} on {owner.get('host')} since "
                f"{owner.get('since')} ({owner.get('command')})"
            )
        return ConfigError(
            f"{self.path.parent}: in use by {who}: wait for its end, stop it, or choose another "
            f"folder or name; if no such process is left, delete {self.path}"
        )


def _owner() -> bytes:
    return json.dumps(
        {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:500],
        }
    ).encode()


def _reads(path: Path) -> dict[str, Any]:
    """Who has the lock, as far as the file says. Never of a lock that the system keeps for this
    process: closing any file of it would end it."""
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _lives(process: Any) -> bool:
    return isinstance(process, int) and process > 0 and is_running(process)
