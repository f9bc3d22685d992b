"""The guard before an application that notes what reaches it; `test_served.py` has it before vLLM."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rs_aligner.config.rollout_servers import ROLLOUTS_TOKEN
from rs_aligner.generation.vllm.connection import WEIGHTS_HEADER
from rs_aligner.generation.vllm.folder import MARKER
from rs_aligner.remote.events import events_of
from rs_aligner.rollout_server.inside import rs_aligner_guard as guarding
from rs_aligner.rollout_server.inside.rs_aligner_guard import MAX_BYTES, Guard

pytestmark = pytest.mark.timeout(30)
TOKEN = "a-secret-of-this-test"
RELOAD, LOAD, UNLOAD = "/collective_rpc", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


class Inner:
    """vLLM's place: it notes what reaches it, and answers with a status."""

    def __init__(self, status: int = 200) -> None:
        self.status, self.reached = status, []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.reached.append((scope["method"], scope["path"], message["body"], dict(scope["headers"])))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"inner"})


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder above all weights, with those of one step in it, and others beside it."""
    for folder, word in (("run/weights/step_1", "one"), ("run/weights/step_2", "two"), ("runaway", "out")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / MARKER).write_text(f"{word}\n")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "runaway")
    monkeypatch.setenv(guarding.ROOT, str(tmp_path / "run"))
    monkeypatch.setenv(guarding.TOKEN, TOKEN)
    return tmp_path / "run"


def ask(
    guard: Guard,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = TOKEN,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    query: str = "",
    kind: str = "http",
    app: Any = None,
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """One request, its body in two parts; status, body and headers of the answer."""
    sent: list[Any] = []
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [content[:5], content[5:]]
    shown = () if token is None else ((b"authorization", f"Bearer {token}".encode()),)
    scope = {"type": kind, "method": method, "path": path, "query_string": query.encode(), "app": app}

    async def receive() -> Any:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    run = guard({**scope, "headers": [*shown, *headers]}, receive, send)
    worker = threading.Thread(target=asyncio.run, args=(run,))  # this thread may have a loop already
    worker.start()
    worker.join()
    if kind == "websocket":
        [closed] = sent
        return closed["code"], closed["type"].encode(), {}
    return sent[0]["status"], b"".join(one["body"] for one in sent[1:]), dict(sent[0]["headers"])


def test_names_are_those_of_who_asks() -> None:
    assert (guarding.TOKEN, guarding.MARKER) == (ROLLOUTS_TOKEN, MARKER)
    assert guarding.WEIGHTS_HEADER.decode() == WEIGHTS_HEADER


@pytest.mark.parametrize("path", ["/health", "/v1/completions", RELOAD, "/rs_aligner/about", "/nothing"])
@pytest.mark.parametrize(
    ("token", "headers"),
    [
        (None, ()),
        ("", ()),
        (f"{TOKEN}x", ()),
        (TOKEN[:-1], ()),
        (None, ((b"authorization", TOKEN.encode()),)),
        (None, ((b"authorization", f"bearer {TOKEN}".encode()),)),
        (TOKEN, ((b"authorization", b"Bearer other"),)),
        (TOKEN, ((b"authorization", f"Bearer {TOKEN}".encode()),)),
    ],
    ids=["none", "empty", "longer", "shorter", "no scheme", "other scheme", "a second", "twice"],
)
def test_without_the_token_every_route_answers_the_same(root: Path, path: str, token, headers) -> None:
    inner = Inner()
    for method in ("GET", "POST", "OPTIONS", "HEAD"):
        status, said, told = ask(Guard(inner), method, path, token=token, headers=headers)
        assert (status, inner.reached) == (401, [])
        assert b"the token of this server is wanted" in said
        assert set(told) == {b"content-type", b"content-length"}


def test_without_a_token_in_the_environment_none_is_wanted(root: Path, monkeypatch) -> None:
    monkeypatch.delenv(guarding.TOKEN)
    assert ask(Guard(Inner()), "GET", "/health", token=None)[:2] == (200, b"inner")


def test_vllms_server_waits_for_no_request_when_it_ends() -> None:
    """`test_served.py` shows that a real one does not."""
    config = SimpleNamespace(timeout_graceful_shutdown=None)
    app = SimpleNamespace(state=SimpleNamespace(server=SimpleNamespace(config=config)))
    assert ask(Guard(Inner()), "GET", "/health", app=app)[:2] == (200, b"inner")
    assert config.timeout_graceful_shutdown == guarding.LAST_SECONDS


def test_a_page_in_a_browser_may_not_ask(root: Path) -> None:
    inner = Inner()
    status, said, _ = ask(Guard(inner), "POST", "/pause", headers=((b"origin", b"null"),))
    assert (status, inner.reached) == (403, [])
    assert b"pages in a browser" in said


@pytest.mark.parametrize("token", [TOKEN, None])
def test_a_websocket_is_closed_before_it_opens(root: Path, token: str | None) -> None:
    assert ask(Guard(Inner()), "GET", "/v1/realtime", token=token, kind="websocket")[:2] == (
        1008,
        b"websocket.close",
    )


def test_what_rollouts_need_passes_as_it_is(root: Path) -> None:
    for method, path in sorted(guarding.PLAIN):
        inner = Inner()
        assert ask(Guard(inner), method, path, b"any body")[:2] == (200, b"inner")
        assert inner.reached[0][:3] == (method, path, b"any b")  # the first part of it


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/", "/docs", "/openapi.json", "/server_info", "/health/", "//health")),
        *(("POST", path) for path in ("/sleep", "/update_weights", "/v1/completions/", "/invocations")),
        *(("PUT", "/v1/completions"), ("GET", RELOAD), ("POST", "/health"), ("HEAD", "/health")),
        *(("POST", "/rs_aligner/about"), ("GET", "/rs_aligner"), ("OPTIONS", "/v1/completions")),
    ],
)
def test_everything_else_is_no_route(root: Path, method: str, path: str) -> None:
    inner = Inner()
    status, said, _ = ask(Guard(inner), method, path)
    assert (status, inner.reached) == (404, [])
    assert b"rs_aligner's guard" in said


def reload_of(folder: Any, **others: Any) -> dict[str, Any]:
    return {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}, **others}


def test_weights_below_the_root_are_reloaded_and_told_of_by_their_word(root: Path) -> None:
    inner = Inner()
    guard = Guard(inner)
    assert guarding.WEIGHTS_HEADER not in ask(guard, "GET", "/health")[2]
    for step, word in ((1, b"one"), (2, b"two")):
        body = reload_of(root / "weights" / f"step_{step}")
        spaced = json.dumps(body, indent=3).encode()
        headers = ((b"content-length", str(len(spaced)).encode()), (b"x-other", b"kept"))
        status, _, told = ask(guard, "POST", RELOAD, spaced, headers=headers)
        assert (status, told[guarding.WEIGHTS_HEADER]) == (200, word)
        *_, reached, passed = inner.reached[-1]
        assert json.loads(reached) == {**body, "method": "rs_aligner_reload"}
        assert int(passed[b"content-length"]) == len(reached) != len(spaced)
        assert passed[b"x-other"] == b"kept"
        assert ask(guard, "GET", "/health")[2][guarding.WEIGHTS_HEADER] == word


@pytest.mark.parametrize("marked", [True, False])
def test_weights_that_were_not_taken_have_no_word(root: Path, marked: bool) -> None:
    inner = Inner()
    guard = Guard(inner)
    ask(guard, "POST", RELOAD, reload_of(root / "weights" / "step_1"))
    if not marked:
        (root / "weights" / "step_2" / MARKER).unlink()
    inner.status = 500 if marked else 200
    told = ask(guard, "POST", RELOAD, reload_of(root / "weights" / "step_2"))[2]
    assert guarding.WEIGHTS_HEADER not in told
    assert guarding.WEIGHTS_HEADER not in ask(guard, "GET", "/health")[2]


class Streaming(Inner):
    """vLLM's place: pieces of a stream, before each of which something may happen."""

    def __init__(self, *pieces: bytes, kind: bytes = b"text/event-stream; charset=utf-8") -> None:
        super().__init__()
        self.pieces, self.kind, self.guard = pieces, kind, Guard(self)
        self.before: dict[int, Callable[[], Any]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/v1/completions":
            await super().__call__(scope, receive, send)
            return
        headers = [(b"content-type", self.kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for place, piece in enumerate(self.pieces):
            self.before.get(place, lambda: None)()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def reload(guard: Guard, folder: Path) -> None:
    assert ask(guard, "POST", RELOAD, reload_of(folder))[0] == 200


def test_a_stream_has_the_word_in_its_header_and_before_each_event(root: Path) -> None:
    events = b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n", b"data: [DONE]\n\n"
    inner = Streaming(events[0], events[1] + events[2], events[3])
    assert ask(inner.guard, "POST", "/v1/completions")[1] == b"".join(events)
    reload(inner.guard, root / "weights" / "step_1")
    _, said, told = ask(inner.guard, "POST", "/v1/completions")
    assert told[guarding.WEIGHTS_HEADER] == b"one"
    word = b": x-rs-aligner-weights one\n"
    assert said == b"".join(word + event for event in events)
    assert [event.data for event in events_of([said])] == [b"1", b"2", b"3", b"[DONE]"]


@pytest.mark.parametrize("then", [(), ("step_1",), ("step_2",), ("step_2", "step_1")], ids=str)
@pytest.mark.parametrize("word", ["one", None])
def test_a_stream_says_no_word_from_where_weights_were_taken_even_the_same(
    root: Path, then: tuple[str, ...], word: str | None
) -> None:
    inner = Streaming(b"data: 1\n\n", b"data: 2\n\n")
    if word is not None:
        reload(inner.guard, root / "weights" / "step_1")
    inner.before[1] = lambda: [reload(inner.guard, root / "weights" / step) for step in then]
    _, said, told = ask(inner.guard, "POST", "/v1/completions")
    assert told.get(guarding.WEIGHTS_HEADER) == (None if word is None else b"one")
    unchanged = () if word is None else ("x-rs-aligner-weights one",)
    others = ("x-rs-aligner-weights (others since it began)",)
    assert [event.comments for event in events_of([said])] == [unchanged, others if then else unchanged]


def test_pieces_that_are_no_whole_events_and_other_answers_stay_as_they_are(root: Path) -> None:
    inner = Streaming(b"data: 1\n", b"\n", b"data: 2", b"2\n\ndata: 3\n\n")
    reload(inner.guard, root / "weights" / "step_1")
    said = ask(inner.guard, "POST", "/v1/completions")[1]
    assert [event.data for event in events_of([said])] == [b"1", b"22", b"3"]
    assert said.count(b"x-rs-aligner-weights") == 2  # before the first and the last of them
    inner.kind = b"application/json"
    assert ask(inner.guard, "POST", "/v1/completions")[1] == b"".join(inner.pieces)


def test_a_word_of_several_lines_ends_no_comment(root: Path) -> None:
    inner = Streaming(b"data: 1\n\n")
    (root / "weights" / "step_1" / MARKER).write_text("one\n\ndata: 2\r\n\r\ndata: 3\n\n")
    reload(inner.guard, root / "weights" / "step_1")
    _, said, told = ask(inner.guard, "POST", "/v1/completions")
    assert [event.data for event in events_of([said])] == [b"1"]
    assert told[guarding.WEIGHTS_HEADER] == b"one data: 2 data: 3"


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        (RELOAD, reload_of("@/../runaway"), 403, "is not below weights_root"),
        (RELOAD, reload_of("@/link"), 403, "is not below weights_root"),
        (RELOAD, reload_of("@/link/../weights/step_1"), 403, "is not below weights_root"),
        (RELOAD, reload_of("/"), 403, "is not below weights_root"),
        (RELOAD, reload_of("weights/step_1"), 403, "absolute path"),
        (RELOAD, reload_of("@/weights/step_1\0"), 403, "absolute path"),
        (RELOAD, reload_of("@/weights/step_3"), 404, "there is no folder"),
        (RELOAD, reload_of("@/weights/step_1", args=[]), 403, "only reload_weights is run"),
        (RELOAD, {**reload_of("@/weights/step_1"), "method": "apply_model"}, 403, "only reload_weights"),
        (RELOAD, {"method": "reload_weights"}, 403, "only reload_weights"),
        (RELOAD, {"method": "reload_weights", "kwargs": ["@"]}, 403, "weights_path alone"),
        (RELOAD, {"method": "reload_weights", "kwargs": {}}, 403, "weights_path alone"),
        (RELOAD, {"method": "reload_weights", "kwargs": {"weights_path": ["@"]}}, 403, "absolute path"),
        (RELOAD, [1], 400, "a JSON object"),
        (RELOAD, b"{", 400, "a JSON object"),
        (RELOAD, b"\xff\xff\xff\xff\xff\xff", 400, "a JSON object"),
        (RELOAD, b" " * (MAX_BYTES + 1), 413, "at most"),
        (LOAD, {"lora_name": "a", "lora_path": "@/../runaway"}, 403, "is not below weights_root"),
        (LOAD, {"lora_name": "a", "lora_path": "someone/on-the-hub"}, 403, "absolute path"),
        (LOAD, {"lora_name": "a"}, 403, "lora_name, lora_path and load_inplace alone"),
        (LOAD, {"lora_name": "a", "lora_path": "@", "x": 1}, 403, "lora_path and load_inplace alone"),
        (UNLOAD, {"lora_name": "a", "lora_int_id": 3}, 403, "by its lora_name alone"),
    ],
)
def test_what_else_could_be_read_or_run_is_refused(root: Path, path, body, status, told) -> None:
    inner = Inner()
    sent = body if isinstance(body, bytes) else json.loads(json.dumps(body).replace("@", str(root)))
    found, said, _ = ask(Guard(inner), "POST", path, sent)
    assert (found, inner.reached) == (status, [])
    assert told in json.loads(said)["error"]["message"]


def test_adapters_below_the_root_pass(root: Path) -> None:
    inner = Inner()
    body = {"lora_name": "policy@1", "lora_path": str(root / "weights" / "step_1"), "load_inplace": True}
    assert ask(Guard(inner), "POST", LOAD, body)[0] == 200
    assert ask(Guard(inner), "POST", UNLOAD, {"lora_name": "policy@1"})[0] == 200
    assert [json.loads(one[2]) for one in inner.reached] == [body, {"lora_name": "policy@1"}]


def test_without_a_root_no_folder_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(guarding.ROOT)
    status, said, _ = ask(Guard(Inner()), "POST", RELOAD, reload_of(root / "weights" / "step_1"))
    assert status == 403
    assert b"started without weights_root" in said


@pytest.mark.parametrize(
    ("folder", "status", "told"),
    [
        ("@/weights/step_1", 200, b"one"),
        ("@/weights", 404, b"there is no rs_aligner_marker"),
        ("@/nothing", 404, b"there is no folder"),
        ("@/link", 403, b"is not below weights_root"),
        ("", 403, b"absolute path"),
    ],
)
def test_the_marker_of_a_folder_shows_whether_it_is_seen(root: Path, folder, status, told) -> None:
    query = f"folder={folder.replace('@', str(root))}"
    found, said, _ = ask(Guard(Inner()), "GET", "/rs_aligner/marker", query=query)
    assert (found, told in said) == (status, True)
    if status == 200:
        assert said == told


def test_a_marker_that_is_a_link_shows_nothing_else(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of somebody")
    (root / "weights" / "step_1" / MARKER).unlink()
    (root / "weights" / "step_1" / MARKER).symlink_to(tmp_path / "secret")
    found, said, _ = ask(Guard(Inner()), "GET", "/rs_aligner/marker", query=f"folder={root}/weights/step_1")
    assert found == 404
    assert b"somebody" not in said
