"""Sockets of this machine that local proxies listen on.

Belongs here: opening them, and who may connect. Does not belong here: what becomes of a connection (localproxy.py).
"""

import hashlib
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from monoport.client.names import Address
from monoport.errors import Failure
from monoport.net.sockets import keep_alive

PORTS = range(20_000, 30_000)  # for ports made of names: below those that Linux gives to outgoing connections
TRIES = 32  # ports tried in turn where another program has the first
MAX_PATH = 107  # bytes of a Unix socket's path on Linux: sockaddr_un has 108, one for the end
BACKLOG = 128  # connections that wait to be accepted; a pool of clients opens a few dozen at once


def stable_port(cluster: str, name: str) -> int:
    """The port that a resource has on every machine and every day, so that saved connections go on working."""
    digest = hashlib.sha256(f"{cluster}/{name}".encode()).digest()
    return PORTS[int.from_bytes(digest[:4], "big") % len(PORTS)]


def listen(
    address: Address, *, lends_identity: bool, share_identity: bool = False, or_next: bool = False
) -> list[socket.socket]:
    """Sockets that listen at the address, port 0 for any free one.

    Args:
        address: host and port.
        lends_identity: whether whoever connects acts as the user (`--tunnel`).
        share_identity: the user said that others may.
        or_next: where another program has the port, one of the next ones will do.

    Raises:
        Failure: in use, not ours, or wider than loopback while it lends the user's identity.
    """
    if lends_identity and not share_identity and not is_loopback(address.host):
        raise Failure(
            f"{address.host} is not a loopback address: with --tunnel everyone who can connect there would act as you; "
            "--share-identity says that you want that"
        )
    last = address.port + TRIES if or_next else address.port
    while address.port < last:
        try:
            return _listen(address)
        except Failure:
            address = Address(address.host, address.port + 1)
    return _listen(address)


def _listen(address: Address) -> list[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    host = "127.0.0.1" if address.host == "localhost" else address.host
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keep_alive(listening)  # inherited by what is accepted
        listening.setblocking(False)
        listening.bind((host, address.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Failure(f"cannot listen on {address}: {(error.strerror or str(error)).lower()}") from None
    return [listening]


def listen_unix(path: Path) -> list[socket.socket]:
    """A Unix socket that only its owner can connect to.

    Args:
        path: where nothing is yet but what a killed process may have left, in a folder of our own.

    Raises:
        Failure: it cannot be made there.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise Failure(
            f"cannot listen on {path}: {len(os.fsencode(path))} bytes, and a socket's path has {MAX_PATH} at most"
        )
    _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setblocking(False)
        listening.bind(str(path))
        path.chmod(0o600)  # before it listens: nobody has connected yet
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise Failure(f"cannot listen on {path}: {(error.strerror or str(error)).lower()}") from None
    return [listening]


def _remove_stale(path: Path) -> None:
    """Removes the socket that a process which was killed has left; anything else that is there stays."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Failure(f"cannot listen on {path}: there is a file that is no socket")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(f"cannot listen on {path}: {(error.strerror or str(error)).lower()}") from None
    else:
        raise Failure(f"cannot listen on {path}: address already in use")


def address_of(sockets: Sequence[socket.socket]) -> Address:
    """The address of the first, which listens on a port."""
    host, port = sockets[0].getsockname()[:2]
    return Address(host, port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect there; names other than localhost are not resolved to find out."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
