"""An IPv6 address for a service that listens on IPv4: bytes are passed on as they come.

Triton could listen there itself, but what PyTriton starts and watches it with reads no address that has
colons. So it listens on loopback, at a free port, and this passes connections on to it. Left out on purpose:
whatever the bytes say; the access token is looked at where they arrive (`scorer`).
"""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator

_CHUNK_BYTES = 1 << 16
_LAST_SECONDS = 1.0
_IDLE_SECONDS = 3600.0  # a judge may think for long before it answers


@contextlib.contextmanager
def relay(address: str, port: int, to: tuple[str, int]) -> Iterator[None]:
    """Listen at an IPv6 address, and pass what comes on; `::` takes IPv4, too.

    Args:
        address: of this machine.
        port: to listen at.
        to: host and port of the service. Where it is not there, whoever connects is let go.

    Raises:
        OSError: the address cannot be bound.
    """
    under_way: set[socket.socket] = set()
    ended = threading.Condition()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            under_way.add(self.request)
            try:
                with contextlib.suppress(OSError), socket.create_connection(to) as service:
                    _join(self.request, service)
            finally:
                with ended:
                    under_way.discard(self.request)
                    ended.notify_all()

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.AF_INET6
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False
        request_queue_size = 1024  # Triton's own

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
            super().server_bind()

    where = socket.getaddrinfo(address, port, socket.AF_INET6, socket.SOCK_STREAM)[0][4]
    server = Server(where, Handler)  # type: ignore[arg-type]  # with the interface of a local address
    threading.Thread(target=server.serve_forever, name="relay", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        with ended:  # what the service has answered may still be on its way
            ended.wait_for(lambda: not under_way, _LAST_SECONDS)
        server.server_close()


def _join(client: socket.socket, service: socket.socket) -> None:
    """Pass on what either says, until both have said all."""
    other = {client: service, service: client}
    talking = [client, service]
    while talking:
        ready = select.select(talking, [], [], _IDLE_SECONDS)[0]
        if not ready:
            return
        for sock in ready:
            data = sock.recv(_CHUNK_BYTES)
            if data:
                other[sock].sendall(data)
            else:
                talking.remove(sock)
                other[sock].shutdown(socket.SHUT_WR)
