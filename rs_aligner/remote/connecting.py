"""From an address to an open line to its server: over IPv4 or IPv6, through a proxy, with TLS.

Everything here ends at a deadline, whatever the other side does: each address of a name gets its share of the
time, and a line counts down with each piece that is sent or read. Certificates are checked as the system does
(`SSL_CERT_FILE` and `SSL_CERT_DIR` count), or against one authority's file.

Which proxy: `https_proxy` and `no_proxy` of the environment count for `https://` addresses, except on
loopback. A proxy sees nothing of what passes through it then. `http://` addresses are asked directly: they
are machines of the same cluster, and a proxy could read texts and tokens on the way. Left out on purpose:
certificates of clients, proxies that speak SOCKS or TLS, and switching checks off.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from rs_aligner.address import Address
from rs_aligner.remote.errors import TransportError

_SEND_BYTES = 1 << 14  # a record of TLS: the clock is looked at in between
_WRONG_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL
_WRONG_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED


class Line:
    """An open connection until a deadline; what `http.client` wants of a socket, and nothing else.

    Args:
        sock: the connection. Whoever made it closes it.
        deadline: on the monotonic clock; a `TimeoutError` is raised then.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        for start in range(0, len(view), _SEND_BYTES):
            self._sock.settimeout(time_left(self._deadline))
            self._sock.sendall(view[start : start + _SEND_BYTES])

    def receive_into(self, buffer: Any) -> int:
        """Read what there is, at least a byte; 0 at the end."""
        self._sock.settimeout(time_left(self._deadline))
        return self._sock.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        """A reader of what comes."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """The reader may go on: `http.client` closes before the body is read."""


class _Reader(io.RawIOBase):
    """What `io` reads a line through."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.receive_into(buffer)


def time_left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def connect(
    address: Address, authority: str | None, deadline: float, opened: Callable[[socket.socket], None]
) -> socket.socket:
    """Open a connection, and shake hands.

    Args:
        address: of the server.
        authority: a file with the certificates that are trusted; None for the system's.
        deadline: when to give up, on the monotonic clock.
        opened: is told of the connection before anything is said, and again of the one that speaks TLS.

    Raises:
        TimeoutError: it took too long.
        OSError: nobody is reached.
        TransportError: a certificate or a proxy that cannot be used.
    """
    proxy = proxy_of(address)
    sock = _open(proxy or address, deadline)
    try:
        opened(sock)
        if proxy is not None:
            _pass_through(sock, proxy, address, deadline)
        if address.is_tls:
            sock.settimeout(time_left(deadline))
            sock = _with_tls(sock, address.host, authority)
            opened(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def proxy_of(address: Address) -> Address | None:
    """The proxy of the environment through which an address is asked; None to ask it directly.

    Raises:
        TransportError: the environment names one that cannot be used.
    """
    url = _proxy_url(address)
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname:
            return Address(parts.hostname, parts.port or 80)
    except ValueError:
        pass
    raise TransportError(
        f"https_proxy of the environment should be http://host:port; name {address.host} in no_proxy to "
        "ask the server directly",
        "unreachable",
    )


def _proxy_url(address: Address) -> str | None:
    proxies = getproxies()
    spared = any(proxy_bypass(name, proxies) for name in (address.netloc, address.host))
    if not address.is_tls or address.is_loopback or spared:
        return None
    url = proxies.get("https") or proxies.get("all")
    return url if url is None or "://" in url else f"http://{url}"


def _open(address: Address, deadline: float) -> socket.socket:
    """Try the addresses of a name one after the other, each with its share of the time."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for place, (family, kind, protocol, _, where) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(time_left(deadline) / (len(found) - place))
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError:
            sock.close()
            if place == len(found) - 1:
                raise
    raise OSError(f"{address.host} has no address")


def _pass_through(sock: socket.socket, proxy: Address, address: Address, deadline: float) -> None:
    """Let a proxy connect us to the server (HTTP's CONNECT)."""
    line = Line(sock, deadline)
    asked = f"CONNECT {address.netloc} HTTP/1.1\r\nHost: {address.netloc}\r\n{_credentials(address)}\r\n"
    line.sendall(asked.encode("latin-1"))
    response = http.client.HTTPResponse(line, method="CONNECT")  # type: ignore[arg-type]  # all it needs
    response.begin()
    if response.status != 200:
        raise TransportError(
            f"the proxy {proxy.netloc} (https_proxy) answers HTTP {response.status} {response.reason}; name "
            f"{address.host} in no_proxy to ask the server directly",
            "unreachable",
        )


def _credentials(address: Address) -> str:
    """The header that a proxy wants whose URL has a name in it."""
    parts = urlsplit(_proxy_url(address) or "")
    if parts.username is None:
        return ""
    plain = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Proxy-Authorization: Basic {base64.b64encode(plain.encode()).decode()}\r\n"


def _with_tls(sock: socket.socket, host: str, authority: str | None) -> ssl.SSLSocket:
    """Shake hands with the server that has this name.

    Raises:
        TransportError: its certificate is not good, or it does not speak TLS.
    """
    try:
        return _context(authority).wrap_socket(sock, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        said = error.verify_message
        if error.verify_code in _WRONG_NAME:
            message = f"its certificate has another name ({said}): ask it by a name that is in there"
            raise TransportError(message, "bad_certificate") from error
        if error.verify_code in _WRONG_TIME:
            message = f"{said}: the server needs a new one, or the clock of this machine is wrong"
            raise TransportError(message, "bad_certificate") from error
        message = f"its certificate is not signed by an authority that is trusted here ({said})"
        raise TransportError(message, "unknown_authority") from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            message = "it does not speak TLS: write http:// for https://, if that is what it should be"
            raise TransportError(message, "unreachable") from error
        raise


@functools.lru_cache
def _context(authority: str | None) -> ssl.SSLContext:
    # To read the system's certificates takes longer than a handshake.
    return ssl.create_default_context(cafile=authority)
