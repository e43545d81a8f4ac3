"""Addresses to listen on, and what they are called from here and from elsewhere."""

import contextlib
import errno
import ipaddress
import socket
from typing import Any

from dfqs.errors import NetworkError, UsageError, printable

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8080
_BACKLOG = 1024


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before a model is loaded for it; connections wait until somebody answers them.

    Raises:
        NetworkError: taken, not permitted, or not an address of this machine.
        UsageError: no such host or port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, OverflowError, UnicodeError):
        raise UsageError(f"'{printable(host)}' port {port} is no address to listen on") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Binding alone succeeds beside a listener that set SO_REUSEADDR too.
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise NetworkError(f"port {port} on {host} is taken; choose another with --port, or 0 for any") from None
        raise NetworkError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def check_address(host: str, port: int) -> None:
    """Find out whether an address can be had.

    Raises:
        As `listen`.
    """
    listen(host, port).close()


def urls_of(host: str, port: int) -> tuple[str, tuple[str, ...]]:
    """An address that can be opened here, and those that can be opened from elsewhere: 0.0.0.0 is neither."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}", ()
    if not address.is_unspecified:
        return f"http://{_bracketed(host)}:{port}", ()
    here = "127.0.0.1" if address.version == 4 else "[::1]"
    others = {info[4][0] for info in _own_addresses() if isinstance(info[4][0], str)}
    others = {other for other in others if not is_loopback(other) and "%" not in other}
    return f"http://{here}:{port}", tuple(f"http://{_bracketed(other)}:{port}" for other in sorted(others))


def _own_addresses() -> list[Any]:
    name = socket.gethostname()
    found: list[Any] = []
    with contextlib.suppress(OSError, UnicodeError):
        found += socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    # Where the name leads nowhere: the address that a packet to another network would leave by. None is sent.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        found.append((socket.AF_INET, socket.SOCK_DGRAM, 0, "", probe.getsockname()))
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
