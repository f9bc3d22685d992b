"""How a server takes new weights: what it is asked, in which order, and what is said where it does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from rs_aligner.generation.vllm.canary import Canary
from rs_aligner.generation.vllm.folder import MARKER, Sent
from rs_aligner.generation.vllm.weights import Update, check_canary
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import HTTPAnswer

pytestmark = pytest.mark.timeout(30)
CANARY = Canary([(1, 2), (3, 4)], [((5, 6), (-0.5, -1.0)), ((7, 8), (-0.1, -0.2))], bound=0.1)


class Server:
    """As far as new weights are concerned; a test changes what single routes answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.answers: dict[str, HTTPAnswer] = {}
        self.adapters: list[str] = []

    def exchange(
        self,
        method: str,
        path: str,
        timeout: float,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> HTTPAnswer:
        route = urlsplit(path).path
        self.asked.append(f"{method} {path}" if "marker" not in path else f"{method} {route}")
        self.bodies.append(json.loads(body) if body else None)
        if route in self.answers:
            return self.answers[route]
        return self._answer(route, path)

    def _answer(self, route: str, path: str) -> HTTPAnswer:
        if route == "/rs_aligner/marker":
            [folder] = parse_qs(urlsplit(path).query)["folder"]
            return HTTPAnswer(200, {}, (Path(folder) / MARKER).read_bytes())
        if route == "/reset_prefix_cache":
            return said(200, {"success": True})
        if route == "/v1/models":
            return said(200, {"data": [{"id": one} for one in ("policy", *self.adapters)]})
        if route == "/v1/completions":
            return said(
                200, {"choices": [choice(1, *CANARY.continuations[1]), choice(0, *CANARY.continuations[0])]}
            )
        return said(200, {"status": "fine"})


def said(status: int, content: Any) -> HTTPAnswer:
    return HTTPAnswer(status, {}, json.dumps(content).encode())


def choice(index: int, tokens: Any, log_probs: Any) -> dict[str, Any]:
    return {"index": index, "token_ids": tokens, "logprobs": {"token_logprobs": log_probs}}


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    (tmp_path / MARKER).write_text("word\n")
    return Sent(tmp_path, 12, "word", CANARY)


def update(server: Server, sent: Sent) -> None:
    Update(server, sent, "policy", timeout=5).run(wait=0)


def checked(server: Server, sent: Sent) -> str | None:
    return check_canary(server, sent.canary, sent.name("policy"), 5)


RELOAD = ["POST /pause?mode=wait", "POST /collective_rpc", "POST /reset_prefix_cache", "POST /resume"]
SEES, SINGS = "GET /rs_aligner/marker", "POST /v1/completions"


def test_a_server_is_paused_reloads_forgets_resumes_and_sings(server: Server, sent: Sent) -> None:
    update(server, sent)
    assert checked(server, sent) is None
    assert server.asked == [SEES, *RELOAD, SINGS]
    assert server.bodies[2] == {
        "method": "reload_weights",
        "kwargs": {"weights_path": str(sent.folder)},
    }
    assert server.bodies[-1]["prompt"] == [[1, 2], [3, 4]]


def test_a_server_that_sees_nothing_there_is_not_asked_to_take_it(server: Server, sent: Sent) -> None:
    server.answers["/rs_aligner/marker"] = HTTPAnswer(404, {}, b"rs_aligner: no such marker")
    with pytest.raises(ValueError, match=f"does not see {sent.folder}.*nothing there.*same path"):
        update(server, sent)
    assert server.asked == [SEES]


def test_neither_is_one_that_has_another_folder_there_or_may_not_read_it(server: Server, sent: Sent) -> None:
    server.answers["/rs_aligner/marker"] = HTTPAnswer(200, {}, b"other word")
    with pytest.raises(ValueError, match="another folder there"):
        update(server, sent)
    server.answers["/rs_aligner/marker"] = HTTPAnswer(403, {}, b"rs_aligner: outside of /data")
    with pytest.raises(ValueError, match=r"may not read .* outside of /data; .*weights_root"):
        Update(server, sent, "policy", timeout=5).run()  # which does not wait for it to be allowed
    assert server.asked == [SEES, SEES]


def test_a_vllm_without_our_guard_or_the_routes_is_told_in_a_line(server: Server, sent: Sent) -> None:
    server.answers["/rs_aligner/marker"] = said(404, {"detail": "Not Found"})
    with pytest.raises(ValueError, match=r"no guard.*serve-rollouts"):
        update(server, sent)
    del server.answers["/rs_aligner/marker"]
    server.answers["/pause"] = said(404, {"detail": "Not Found"})
    with pytest.raises(ValueError, match=r"it has no /pause, .*serve-rollouts"):
        update(server, sent)


def test_one_that_did_not_take_them_has_to_be_started_again(server: Server, sent: Sent) -> None:
    server.answers["/collective_rpc"] = said(500, {"error": "Worker failed"})
    with pytest.raises(
        TransportError, match=f"did not take {sent.folder}, and has to be started again: HTTP 500"
    ):
        update(server, sent)
    assert server.asked[-1] == "POST /resume"  # who may be alive is not left paused


def test_one_that_keeps_its_prefix_cache_is_resumed_and_left_out(
    server: Server, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rs_aligner.generation.vllm.weights._LOOK_SECONDS", 0.0)
    server.answers["/reset_prefix_cache"] = said(200, {"success": False})
    with pytest.raises(TransportError, match="prefix cache, which is of the old weights"):
        update(server, sent)
    assert server.asked[-1] == "POST /resume"


def test_one_that_computes_with_other_weights_is_found_out(server: Server, sent: Sent) -> None:
    old = [choice(0, (5, 6), (-0.5, -1.3)), choice(1, *CANARY.continuations[1])]
    server.answers["/v1/completions"] = said(200, {"choices": old})
    assert "to canary 1 it gives log-probability -1.3000 for -1.0000" in str(checked(server, sent))
    server.answers["/v1/completions"] = said(500, {"error": "EngineCore encountered an issue"})
    with pytest.raises(TransportError, match="HTTP 500: EngineCore encountered an issue"):
        checked(server, sent)


@pytest.mark.parametrize(
    "garbage",
    [b"{}", b"[]", b"<html>", b'{"choices": [{"index": 0}]}', b'{"choices": []}', b'{"choices": 7}'],
)
def test_garbage_is_no_canary(server: Server, sent: Sent, garbage: bytes) -> None:
    server.answers["/v1/completions"] = HTTPAnswer(200, {}, garbage)
    assert "canar" in str(checked(server, sent))


def test_an_adapter_is_put_beside_the_weights_under_a_name_of_its_own(server: Server, sent: Sent) -> None:
    server.adapters = ["policy@older", "policy@word", "users_own"]
    adapter = Sent(sent.folder, 12, "word", CANARY, is_adapter=True)
    update(server, adapter)
    assert checked(server, adapter) is None
    assert server.asked == [
        SEES,
        "POST /v1/load_lora_adapter",
        "GET /v1/models",
        "POST /v1/unload_lora_adapter",
        SINGS,
    ]
    assert server.bodies[1] == {"lora_name": "policy@word", "lora_path": str(sent.folder)}
    assert server.bodies[3] == {"lora_name": "policy@older"}
    assert server.bodies[4]["model"] == "policy@word"


def test_a_server_that_has_the_adapter_already_is_as_good(server: Server, sent: Sent) -> None:
    server.answers["/v1/load_lora_adapter"] = said(
        400, {"error": {"message": "The lora adapter 'policy@word' has already been loaded."}}
    )
    update(server, Sent(sent.folder, 12, "word", CANARY, is_adapter=True))
    server.answers["/v1/load_lora_adapter"] = said(404, {"detail": "Not Found"})
    with pytest.raises(TransportError, match="did not take the adapter"):
        update(server, Sent(sent.folder, 12, "word", CANARY, is_adapter=True))
