"""What people write for a server, as host, port, TLS and path."""

from __future__ import annotations

import re

import pytest

from rs_aligner.address import Address

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("node1:5555", Address("node1", 5555), "http://node1:5555"),
        ("[::1]:8000", Address("::1", 8000), "http://[::1]:8000"),
        ("[fe80::1%eth0]:8000", Address("fe80::1%eth0", 8000), "http://[fe80::1%eth0]:8000"),
        ("http://[::1]:3/", Address("::1", 3), "http://[::1]:3"),
        ("http://a", Address("a", 80), "http://a:80"),
        ("https://a.example.com", Address("a.example.com", 443, True), "https://a.example.com:443"),
        ("HTTPS://a:1/rm/x/", Address("a", 1, True, "/rm/x"), "https://a:1/rm/x"),
        ("node1:5555/rm", Address("node1", 5555, False, "/rm"), "http://node1:5555/rm"),
    ],
)
def test_an_address_is_read_and_shown(text: str, address: Address, shown: str) -> None:
    assert Address.parse(text) == address
    assert str(address) == shown
    assert Address.parse(shown) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("judge-node", '\'judge-node\' should be "host:port", "[::1]:port" or a URL'),
        ("::1:8000", "an IPv6 address is written in brackets"),
        ("http://::1:8000", "an IPv6 address is written in brackets"),
        ("[::1:8000", "should be"),
        ("a:http", "should be"),
        ("a:99999", "should be"),
        ("grpc://a:1", "the scheme should be http:// or https://"),
        ("https://a?token=1", "it should end with its path"),
        ("https://a/#", "it should end with its path"),
        ("https://", "should be"),
        ("", "should be"),
        (":5555", "should be"),
        ("a b:1", "it has a space in it"),
    ],
)
def test_what_is_no_address_is_told_with_what_would_work(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Address.parse(text)


def test_a_secret_in_a_url_is_refused_and_not_repeated() -> None:
    for text in ("https://me:secret@a/rm", "grpc://me:secret@a", "https://secret@[a"):
        with pytest.raises(ValueError, match="address") as told:
            Address.parse(text)
        assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("localhost", True),
        ("LocalHost.", True),
        ("a.localhost", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost.example.com", False),
        ("10.0.0.1", False),
        ("fd00::1", False),
    ],
)
def test_loopback_is_known_without_looking_it_up(host: str, is_loopback: bool) -> None:
    assert Address(host, 1).is_loopback == is_loopback
