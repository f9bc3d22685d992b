"""Servers on loopback that speak TLS, with certificates made on the spot, and what stands before them."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme


def certificate(authority: trustme.CA, *names: str, expired: bool = False) -> ssl.SSLContext:
    """What a server of these names shows, signed by the authority."""
    ended = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1) if expired else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_after=ended).configure_cert(context)
    return context


def authority_file(authority: trustme.CA, folder: Path) -> str:
    """A file of the authority, as `ca_file` takes it."""
    authority.cert_pem.write_to_path(file := folder / "authority.pem")
    return str(file)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # as servers have it; five callers at once are turned away otherwise

    def handle_error(self, *_: Any) -> None:
        """Who asks for the wrong thing is told by the test."""


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], tls: ssl.SSLContext | None, host: str) -> Iterator[int]:
    """Serve requests; yields the port."""

    class Server(_Server):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = Server((host, 0), handler)
    if tls is not None:
        # The handshake is the handler's: whoever fails it must not hold up the next.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def front(
    to: int, tls: ssl.SSLContext | None = None, path: str = "", host: str = "127.0.0.1"
) -> Iterator[int]:
    """A reverse proxy, as people put before a server: TLS, below a path of its own; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{path}/"):
                self.send_error(404, "nothing below this path")
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            behind = http.client.HTTPConnection("127.0.0.1", to, timeout=20)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            behind.request(self.command, self.path.removeprefix(path), body, headers)
            answer = behind.getresponse()
            said = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler, tls, host) as port:
        yield port


class Proxy:
    """What a proxy of the environment was asked for, and with which credentials."""

    def __init__(self) -> None:
        self.port, self.asked, self.credentials = 0, list[str](), list[str | None]()
        self.status = 200


@contextlib.contextmanager
def forward_proxy(to: int) -> Iterator[Proxy]:
    """A proxy that connects whoever asks it (CONNECT), whatever the name, to a port of this machine."""
    proxy = Proxy()

    class Handler(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            proxy.asked.append(self.path)
            proxy.credentials.append(self.headers.get("Proxy-Authorization"))
            self.send_response(proxy.status)
            self.end_headers()
            if proxy.status == 200:
                with socket.create_connection(("127.0.0.1", to)) as behind:
                    _join(self.connection, behind)

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Handler, None, "127.0.0.1") as proxy.port:
        yield proxy


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes on in both directions until a side ends."""
    while True:
        for sock in select.select([one, other], [], [], 20)[0]:
            data = sock.recv(1 << 16)
            if not data:
                return
            (other if sock is one else one).sendall(data)
