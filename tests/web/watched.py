"""`python -m tests.web.watched LOG FLAG …`: `common.web`, with a log of what it writes and calls.

Every file that is opened for writing, made, moved or removed, and every address that is connected
to, is one line of LOG.
"""

from __future__ import annotations

import os
import sys
import threading

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")


def watch(log: str) -> None:
    """Begin to write the log."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    busy = threading.local()

    def seen(event: str, arguments: tuple[object, ...]) -> None:
        if getattr(busy, "now", False):
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            if not isinstance(arguments[2], int) or not arguments[2] & WRITING:
                return
            said = f"write {os.fsdecode(arguments[0])}"
        elif event in CHANGES:
            said = f"write {arguments[1] if event == 'os.rename' else arguments[0]}"
        elif event == "socket.connect":
            said = f"connect {arguments[1]}"
        else:
            return
        busy.now = True
        os.write(file, f"{said}\n".encode())
        busy.now = False

    sys.addaudithook(seen)


if __name__ == "__main__":
    watch(sys.argv[1])
    from common.web import main

    sys.exit(main(sys.argv[2:]))
