"""Where the server listens."""

from __future__ import annotations

import socket

from common.errors import ConfigError

LOCAL = ("127.0.0.1", "localhost", "::1")


def free_port(host: str, port: int) -> int:
    """The port, if nothing listens on it; for 0 any that is free.

    Raises:
        ConfigError: it is taken, or this machine has no such address.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: give a number from 0 to 65535")
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
            return int(tried.getsockname()[1])
    except OSError as error:
        raise cannot_listen(host, port, error) from None


def cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    """What is said where the server cannot listen."""
    return ConfigError(
        f"--host {host} --port {port}: cannot listen there ({error.strerror or error}): choose "
        "another one (--port 0: any that is free)"
    )
