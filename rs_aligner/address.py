"""Where a server is: what people write, `host:port` or a URL, as host, port, TLS and path.

The one place that reads addresses: whoever has one in a config, shows one or asks one has it from here. Left
out on purpose: whether anybody is there (`remote/`), and secrets, which have files of their own: what a URL
says is shown in messages and written into a run's folder.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, urlsplit

FORMS = '"host:port", "[::1]:port" or a URL such as https://judges.example.com/rm'
"""What may be written, for messages."""
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Attributes:
        host: its name or address, an IPv6 address without brackets.
        port: its port.
        is_tls: whether it speaks TLS (`https://`).
        path: what its paths begin with, where a proxy has put it below one, such as `/rm`; else empty.
    """

    host: str
    port: int
    is_tls: bool = False
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what somebody wrote; a URL without a port has its scheme's.

        Raises:
            ValueError: it is none of `FORMS`, with what would work.
        """
        scheme, mark, rest = text.strip().rpartition("://")
        if mark and scheme.lower() not in _PORTS:
            raise _unreadable(text, "the scheme should be http:// or https://")
        try:
            parts = urlsplit(f"{scheme.lower() or 'http'}://{rest}")
            _refuse_rest(text, parts)
            host, port = parts.hostname, parts.port
        except ValueError as error:  # brackets that are not closed, a port that is no number
            raise error if isinstance(error, _Unreadable) else _unreadable(text, str(error)) from None
        if not host or (port is None and not mark):
            raise _unreadable(text, "")
        is_tls = parts.scheme == "https"
        return cls(host, _PORTS[parts.scheme] if port is None else port, is_tls, parts.path.rstrip("/"))

    @property
    def netloc(self) -> str:
        """Host and port, as a client is told them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine by its name alone; nothing is looked up."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower().rstrip(".").rpartition(".")[2] == "localhost"

    def __str__(self) -> str:
        return f"http{'s' if self.is_tls else ''}://{self.netloc}{self.path}"


class _Unreadable(ValueError):
    """None of `FORMS`."""


def _refuse_rest(text: str, parts: SplitResult) -> None:
    """What a URL may have and an address may not."""
    if "@" in parts.netloc:
        # Without the text, which has a secret.
        raise _Unreadable("an address has a name or a password in it; a token has a file of its own")
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise _unreadable(text, "it should end with its path")
    if ":" in parts.netloc.rpartition(":")[0] and not parts.netloc.startswith("["):
        raise _unreadable(text, "an IPv6 address is written in brackets")
    if any(letter.isspace() for letter in parts.netloc + parts.path):
        raise _unreadable(text, "it has a space in it")


def _unreadable(text: str, why: str) -> _Unreadable:
    shown = repr(text) if "@" not in text else "an address"
    return _Unreadable(
        f"{shown} should be {FORMS}, for example judge-node:5555" + (f": {why}" if why else "")
    )
