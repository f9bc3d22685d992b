"""Where a server of ours listens: an address that is free, with a token where other machines can reach it.

Left out on purpose: the server, and who asks it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import random
import socket
from pathlib import Path

from rs_aligner.remote.token import read_token

_HANDED_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_NOT_HANDED_OUT = range(20_000, 32_768)  # by any system that was left as it is
_FIRST = _NOT_HANDED_OUT.start  # below it are the ports of many a service
_MOST_TRIES = 100


def listen_at(host: str, port: int, token_file: str | None, variable: str) -> tuple[str, str | None]:
    """The address to bind, by the keys of a section `inference`, with the token of clients, if there is one.

    Args:
        host: `inference.host`: a name or an address.
        port: `inference.port`.
        token_file: `inference.token_file`.
        variable: of the environment, that may have the token, too.

    Raises:
        ValueError: the address is taken, or other machines could reach it without a token.
    """
    address = free_address(host, port)
    token = read_token("inference.token_file", token_file, variable)
    if token is None and not ipaddress.ip_address(address).is_loopback:
        raise ValueError(
            f"inference.host is {host}: other machines can reach it, so set inference.token_file, or the "
            f"variable {variable}, to a secret that clients have, too; or keep 127.0.0.1"
        )
    return address, token


def any_free_port() -> int:
    """A port of the loopback address that is free, for a server that starts in some seconds.

    It is none of those that the system hands out by itself, to connections and to whoever binds port 0: one
    of these may be another's by then, whose answers would be taken for the server's.
    """
    ports = _NOT_HANDED_OUT
    with contextlib.suppress(OSError, ValueError):  # a system that is not Linux
        first, last = map(int, _HANDED_OUT.read_text().split())
        ports = max(range(_FIRST, first), range(max(last + 1, _FIRST), 1 << 16), key=len)
    draw = random.SystemRandom()  # not the generator of a run, which is seeded: each run would draw the same
    for port in draw.sample(ports, min(len(ports), _MOST_TRIES)):
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def free_address(host: str, port: int) -> str:
    """Resolve the host, IPv4 where it has both, and make sure that its port can be bound.

    Raises:
        ValueError: it cannot, with the reason.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        family, where = min((family == socket.AF_INET6, family, one) for family, _, _, _, one in found)[1:]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise ValueError(
            f"cannot serve at {host}:{port}: {error.strerror or error}; "
            "set inference.port to a free port and inference.host to an address of this machine"
        ) from None
    return str(where[0])
