"""Judges behind `https://`, at IPv6 addresses, below a path and beyond a proxy; lines that end in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from rs_aligner.address import Address
from rs_aligner.config import RemoteRMConfig
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import Conversation
from rs_aligner.reward.client import JudgeUnreachable, RemoteGPTRMClient
from rs_aligner.rollout import Score
from tests.remote.tls import authority_file, certificate, forward_proxy, front
from tests.reward.fake_judge import Answer, FakeJudge, fake_judge, rewards
from tests.reward.rows import row

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    return authority_file(authority, tmp_path)


@pytest.fixture
def judge() -> Iterator[FakeJudge]:
    def ones(num_rows: int) -> Answer:
        return rewards([1.0] * num_rows)

    with fake_judge(ones) as running:
        yield running


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        for spelt in (name, name.upper()):
            monkeypatch.delenv(spelt, raising=False)


def score(endpoint: str, **settings: Any) -> object:
    """What one row gets from the judge there."""
    cfg = RemoteRMConfig(endpoints=(endpoint,), **{"on_failure": "drop", "startup_timeout": 8, **settings})  # type: ignore[arg-type]  # as people write it
    with RemoteGPTRMClient(cfg) as client:
        future = client.submit(*row("abc"))
        client.flush()
        return future.result(timeout=20)


def why_not(endpoint: str, **settings: Any) -> str:
    """Why a client does not begin, which it says at once."""
    began = time.monotonic()
    with pytest.raises(JudgeUnreachable) as told:
        score(endpoint, **{"startup_timeout": 30, **settings})
    assert time.monotonic() - began < 25, "to wait would not help"
    return str(told.value)


def test_a_judge_behind_tls_and_below_a_path_scores(
    judge: FakeJudge, authority: trustme.CA, ca_file: str
) -> None:
    with front(judge.port, certificate(authority, "localhost"), "/rm/v2beta") as port:
        assert score(f"https://localhost:{port}/rm/v2beta/", ca_file=ca_file) == Score(
            1.0, precision="float32"
        )
    with front(judge.port, path="/rm") as port:
        assert isinstance(score(f"http://127.0.0.1:{port}/rm"), Score)


def test_who_the_system_trusts_is_trusted(
    judge: FakeJudge, authority: trustme.CA, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rs_aligner.remote import connecting

    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    connecting._context.cache_clear()
    try:
        with front(judge.port, certificate(authority, "127.0.0.1")) as port:
            assert isinstance(score(f"https://127.0.0.1:{port}"), Score)
    finally:
        connecting._context.cache_clear()


def test_a_certificate_of_another_authority_is_refused_with_the_key_that_names_one(
    judge: FakeJudge, authority: trustme.CA, tmp_path: Path
) -> None:
    others = authority_file(trustme.CA(), tmp_path)
    with front(judge.port, certificate(authority, "localhost")) as port:
        for settings in ({}, {"ca_file": others}):
            told = why_not(f"https://localhost:{port}", **settings)
            assert told.startswith(f"https://localhost:{port}: its certificate is not signed by an authority")
            assert "set remote_rm.ca_file to the certificate (PEM) of the authority" in told
    assert judge.batches == []


def test_a_certificate_of_another_name_is_refused(
    judge: FakeJudge, authority: trustme.CA, ca_file: str
) -> None:
    with front(judge.port, certificate(authority, "judge.example.com")) as port:
        told = why_not(f"https://localhost:{port}", ca_file=ca_file)
        assert told.startswith(f"https://localhost:{port}: its certificate has another name")
        assert "'localhost'" in told
        assert "ask it by a name that is in there" in told
        told = why_not(f"https://127.0.0.1:{port}", ca_file=ca_file)
        assert told.startswith(f"https://127.0.0.1:{port}: its certificate has another name")


def test_a_certificate_that_has_expired_is_refused(
    judge: FakeJudge, authority: trustme.CA, ca_file: str
) -> None:
    with front(judge.port, certificate(authority, "localhost", expired=True)) as port:
        told = why_not(f"https://localhost:{port}", ca_file=ca_file)
    assert told.startswith(f"https://localhost:{port}: certificate has expired: the server needs a new one")


def test_a_server_whose_certificate_goes_bad_in_mid_run_is_left_out_and_comes_back(
    judge: FakeJudge, authority: trustme.CA, ca_file: str
) -> None:
    tls = certificate(authority, "localhost")
    with front(judge.port, tls) as port, front(judge.port) as plain:
        cfg = RemoteRMConfig(
            endpoints=(f"https://localhost:{port}", f"http://127.0.0.1:{plain}"),  # type: ignore[arg-type]  # as people write it
            ca_file=ca_file,
            max_in_flight=1,
        )
        with RemoteGPTRMClient(cfg) as client:
            client.wait_until_ready()
            trustme.CA().issue_cert("localhost").configure_cert(tls)
            futures = [client.submit(*row("abc")) for _ in range(200)]
            client.flush()
            assert all(isinstance(future.result(timeout=20), Score) for future in futures)


@pytest.mark.parametrize(
    ("is_tls", "scheme", "message"),
    [
        (False, "https", "it does not speak TLS: write http:// for https://"),
        (True, "http", "a server that speaks TLS is asked by https://"),
    ],
)
def test_the_wrong_scheme_is_told(
    is_tls: bool, scheme: str, message: str, judge: FakeJudge, authority: trustme.CA, ca_file: str
) -> None:
    tls = certificate(authority, "localhost") if is_tls else None
    with front(judge.port, tls) as port:
        told = why_not(f"{scheme}://localhost:{port}", ca_file=ca_file, startup_timeout=0.5)
    assert message in told


def test_a_server_that_dies_over_a_request_is_not_taken_for_one_that_speaks_tls(
    authority: trustme.CA, judge: FakeJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rs_aligner.remote.transport.AT_ONCE", -1.0)  # so whatever it does, it took its time
    with front(judge.port, certificate(authority, "localhost")) as port:
        told = why_not(f"http://localhost:{port}", startup_timeout=0.5)
    assert "RemoteDisconnected" in told
    assert "TLS" not in told


def test_a_judge_at_an_ipv6_address_scores(judge: FakeJudge, authority: trustme.CA, ca_file: str) -> None:
    with front(judge.port, host="::1") as port:
        assert isinstance(score(f"[::1]:{port}"), Score)
    with front(judge.port, certificate(authority, "::1"), host="::1") as port:
        assert isinstance(score(f"https://[::1]:{port}", ca_file=ca_file), Score)


def test_a_proxy_of_the_environment_is_asked_for_https_beyond_loopback_only(
    judge: FakeJudge, authority: trustme.CA, ca_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certificate(authority, "judge.example.com", "localhost")
    with front(judge.port, tls) as port, forward_proxy(port) as proxy:
        for name in ("https_proxy", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://me:a%20secret@127.0.0.1:{proxy.port}")
        assert isinstance(score("https://judge.example.com/", ca_file=ca_file), Score)
        assert set(proxy.asked) == {"judge.example.com:443"}
        assert set(proxy.credentials) == {"Basic bWU6YSBzZWNyZXQ="}  # me:a secret
        proxy.asked.clear()
        assert isinstance(score(f"https://localhost:{port}", ca_file=ca_file), Score)
        assert isinstance(score(f"http://127.0.0.1:{judge.port}"), Score)
        why_not("http://judge.example.invalid:80", startup_timeout=0.5)
        monkeypatch.setenv("no_proxy", "example.com")
        why_not("https://judge.example.com", startup_timeout=0.5)
        assert proxy.asked == []
        monkeypatch.delenv("no_proxy")
        proxy.status = 407
        told = why_not("https://judge.example.com", startup_timeout=0.5)
        assert f"the proxy 127.0.0.1:{proxy.port} (https_proxy) answers HTTP 407" in told
        assert "name judge.example.com in no_proxy" in told
        assert "secret" not in told
        monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
        assert "https_proxy of the environment should be http://host:port" in why_not(
            "https://judge.example.com", startup_timeout=0.5
        )


@contextlib.contextmanager
def dripping(data: bytes, seconds: float) -> Iterator[int]:
    """A server that sends a byte now and then, to whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                sock = listener.accept()[0]
                with sock:
                    for byte in data:
                        sock.sendall(bytes([byte]))
                        if ended.wait(seconds):
                            return

        threading.Thread(target=drip, daemon=True).start()
        yield listener.getsockname()[1]
        ended.set()


@pytest.mark.parametrize("is_tls", [False, True])
def test_headers_and_handshakes_that_drip_end_in_time(is_tls: bool) -> None:
    headers = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50
    records = b"\x16\x03\x03\x40\x00" + b"\x02" * 300
    with dripping(records if is_tls else headers, 0.05) as port:
        with pytest.raises(TransportError, match=r"no answer within 0\.4 s") as told:
            Conversation(Address("127.0.0.1", port, is_tls)).exchange("GET", "/", 0.4)
        assert told.value.kind == "timeout"


def test_a_conversation_that_speaks_tls_can_be_cut_short(
    judge: FakeJudge, authority: trustme.CA, ca_file: str
) -> None:
    asked = threading.Event()

    def hold(num_rows: int) -> Answer:
        asked.set()
        time.sleep(20)
        return rewards([1.0] * num_rows)

    judge.answer = hold
    with front(judge.port, certificate(authority, "localhost")) as port:
        cfg = RemoteRMConfig(endpoints=(f"https://localhost:{port}",), ca_file=ca_file)  # type: ignore[arg-type]  # as people write it
        client = RemoteGPTRMClient(cfg)
        future = client.submit(*row("abc"))
        client.flush()
        assert asked.wait(20)
        client.close()
        assert "closed before the judge answered" in str(future.result(timeout=5))
