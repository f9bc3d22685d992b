"""The guard of a vLLM server: what it lets through to vLLM, and what it answers itself.

vLLM loads it by `--middleware rs_aligner_guard.Guard` as its outermost one, so each request of each kind
meets it first: without the token nothing is answered, not even that a route exists, and of vLLM's routes only
those pass that rollouts need. Its development routes run any method of its workers and read any folder, and
its own key guards none of them: here they reload weights from below one folder. Pages in a browser may ask
nothing.

It also sees to it that vLLM ends. On SIGTERM a vLLM 0.32 ends its engine and then waits for the requests
under way, which nobody answers any more: the guard has them broken off, by a limit of the HTTP server that
vLLM has no switch for. Where whoever started vLLM was killed, the guard kills it soon.

Left out on purpose: whatever is not of the standard library, since vLLM's environment has nothing of ours;
and limits on how much is asked.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TOKEN, ROOT = "RS_ALIGNER_ROLLOUTS_TOKEN", "RS_ALIGNER_WEIGHTS_ROOT"
"""Variables: the token, none where only this machine reaches the server; the folder above all weights."""
BARRED = "RS_ALIGNER_BARRED_IDS"
"""The variable of `rs_aligner_barring`, whose first word tells which ids this server can bar."""
LAUNCHER = "RS_ALIGNER_ROLLOUTS_LAUNCHER"
"""Variable: the process that started this one, and without which it ends."""
GRACE_SECONDS = 5.0
"""How long vLLM may take to end by itself without it."""
LAST_SECONDS = 1
"""How long requests may go on once the engine has ended: what it still said may be sent."""
MARKER = "rs_aligner_marker"
"""The file in a folder of weights whose text tells this folder from others."""
WEIGHTS_HEADER = b"x-rs-aligner-weights"
"""Of every answer, once weights were reloaded: the text of their folder's marker. A stream of events has it
in a comment of each event, too, since its header comes before its first token; or `OTHERS`."""
OTHERS = b"(others since it began)"
STREAM = b"text/event-stream"
PLAIN = {
    *(("GET", "/health"), ("GET", "/v1/models"), ("GET", "/version"), ("GET", "/metrics")),
    *(("POST", "/v1/completions"), ("POST", "/pause"), ("POST", "/resume"), ("POST", "/reset_prefix_cache")),
}
"""What passes as it is."""
RELOAD = "rs_aligner_reload"
"""What a worker runs where `reload_weights` is asked for: `rs_aligner_worker`'s, which reaches every copy."""
MAX_BYTES = 65_536  # of a request whose body is looked at, and of a marker


class Refused(Exception):
    """A request that is not let through: the status of its answer, and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Guard:
    """An ASGI application around vLLM's.

    Args:
        app: vLLM's.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._token = os.environ.get(TOKEN, "")
        self._root = os.path.realpath(os.environ[ROOT]) if os.environ.get(ROOT) else None
        self._bodies = {
            "/collective_rpc": self._reload,
            "/v1/load_lora_adapter": self._load_adapter,
            "/v1/unload_lora_adapter": self._unload_adapter,
        }
        self._started = secrets.token_hex(8)
        self._word, self._reloads = "", 0
        if os.environ.get(LAUNCHER) == str(os.getppid()):
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer, or let vLLM answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        _limit_end(scope)
        try:
            self._admit(scope)
            await self._answer(scope, receive, self._with_word(send))
        except Refused as refusal:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            body = {"error": {"message": f"rs_aligner's guard: {refusal}", "code": refusal.status}}
            await _respond(send, refusal.status, body)

    def _admit(self, scope: Message) -> None:
        if self._token:
            shown = _headers(scope, b"authorization")
            wanted = f"Bearer {self._token}".encode()
            if len(shown) != 1 or not hmac.compare_digest(shown[0], wanted):
                raise Refused(401, f"the token of this server is wanted, as {TOKEN} has it")
        if _headers(scope, b"origin"):
            raise Refused(403, "pages in a browser may not ask")
        if scope["type"] != "http":
            raise Refused(403, f"only HTTP is answered, not {scope['type']}")

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) in PLAIN:
            await self._app(scope, receive, send)
        elif (method, path) == ("GET", "/rs_aligner/about"):
            await _respond(send, 200, self._about(scope))
        elif (method, path) == ("GET", "/rs_aligner/marker"):
            wanted = parse_qs(scope["query_string"].decode("latin-1")).get("folder", [""])[0]
            await _respond(send, 200, await asyncio.to_thread(self._marker, wanted))
        elif method == "POST" and path in self._bodies:
            await self._looked_at(scope, receive, send)
        else:
            raise Refused(404, f"{method} {path} is no route that rollouts need")

    async def _looked_at(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on with the body as it was understood here, so that vLLM understands no other."""
        body = await asyncio.to_thread(self._bodies[scope["path"]], await _json(receive))
        content = json.dumps(body).encode()
        kept = [
            (name, value)
            for name, value in scope["headers"]
            if name not in (b"content-length", b"transfer-encoding")
        ]
        headers = [*kept, (b"content-length", str(len(content)).encode())]
        parts = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def replayed() -> Message:
            return next(parts, None) or await receive()

        word, status = "", 0
        if scope["path"] == "/collective_rpc":
            word, self._word = await asyncio.to_thread(self._word_of, body), ""
            self._reloads += 1

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._word = word if word and status == 200 else self._word
            await send(message)

        await self._app({**scope, "headers": headers}, replayed, watched)

    def _word_of(self, body: dict[str, Any]) -> str:
        try:
            return self._marker(body["kwargs"]["weights_path"])
        except Refused:
            return ""

    def _reload(self, body: dict[str, Any]) -> dict[str, Any]:
        settings = body.get("kwargs")
        if set(body) != {"method", "kwargs"} or body["method"] != "reload_weights":
            raise Refused(
                403, "of the workers' methods only reload_weights is run, with method and kwargs alone"
            )
        if not isinstance(settings, dict) or set(settings) != {"weights_path"}:
            raise Refused(403, "kwargs should have weights_path alone")
        return {"method": RELOAD, "kwargs": {"weights_path": self._below(settings["weights_path"])}}

    def _load_adapter(self, body: dict[str, Any]) -> dict[str, Any]:
        if not {"lora_name", "lora_path"} <= set(body) <= {"lora_name", "lora_path", "load_inplace"}:
            raise Refused(403, "an adapter has lora_name, lora_path and load_inplace alone")
        return {**body, "lora_path": self._below(body["lora_path"])}

    def _unload_adapter(self, body: dict[str, Any]) -> dict[str, Any]:
        if set(body) != {"lora_name"}:
            raise Refused(403, "an adapter is unloaded by its lora_name alone")
        return body

    def _below(self, folder: Any) -> str:
        """A folder below the one that weights may lie in, without links.

        Raises:
            Refused: it is elsewhere, or not there.
        """
        if self._root is None:
            raise Refused(403, "this server was started without weights_root, so it reads no folder")
        if not isinstance(folder, str) or not os.path.isabs(folder) or "\0" in folder:
            raise Refused(403, "a folder is named by its absolute path")
        real = os.path.realpath(folder)
        if os.path.commonpath([real, self._root]) != self._root:
            raise Refused(403, f"{folder} is not below weights_root={self._root}")
        if not os.path.isdir(real):
            raise Refused(404, f"there is no folder {folder} here")
        return real

    def _marker(self, folder: str) -> str:
        where = Path(self._below(folder), MARKER)
        if where.is_symlink() or not where.is_file():
            raise Refused(404, f"there is no {MARKER} in {folder}")
        with where.open("rb") as file:
            return file.read(MAX_BYTES).decode("utf-8", "replace").strip()

    def _about(self, scope: Message) -> dict[str, Any]:
        """What a client has to know of this server before it asks for rollouts."""
        state, routes = scope["app"].state, {getattr(one, "path", "") for one in scope["app"].routes}
        config = getattr(state, "vllm_config", None)
        model = getattr(config, "model_config", None)
        adapters = getattr(config, "lora_config", None)
        return {
            "vllm": _version(),
            "started": self._started,
            "model": getattr(model, "model", None),
            "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
            "max_length": getattr(model, "max_model_len", None),
            "vocab_size": model.get_vocab_size() if model is not None else None,
            "lora_rank": getattr(adapters, "max_lora_rank", None)
            if "/v1/load_lora_adapter" in routes
            else None,
            "barred": os.environ.get(BARRED, "").partition(" ")[0] or None,
            "reloads": {"/pause", "/resume", "/collective_rpc", "/reset_prefix_cache"} <= routes,
            "weights_root": self._root,
        }

    def _with_word(self, send: Send) -> Send:
        began, is_streamed, is_between = 0, False, True

        async def tell(message: Message) -> None:
            nonlocal began, is_streamed, is_between
            word = b" ".join(self._word.encode("latin-1", "replace").split())
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ())]
                began, is_streamed = self._reloads, dict(headers).get(b"content-type", b"").startswith(STREAM)
                if word:
                    message = {**message, "headers": [*headers, (WEIGHTS_HEADER, word)]}
            elif is_streamed and (piece := message.get("body")):
                word = word if began == self._reloads else OTHERS
                if word:
                    mark = b": %s %s\n" % (WEIGHTS_HEADER, word)
                    marked = piece.replace(b"\n\n", b"\n\n" + mark).removesuffix(mark)
                    message = {**message, "body": mark + marked if is_between else marked}
                is_between = piece.endswith(b"\n\n")
            await send(message)

        return tell


def _end_with(launcher: int) -> None:
    """Kill this process, and the group that it leads, soon after the one that started it has ended."""
    while os.getppid() == launcher:
        time.sleep(min(1.0, GRACE_SECONDS))
    time.sleep(GRACE_SECONDS)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _limit_end(scope: Message) -> None:
    """Let vLLM's server wait no longer than this for requests when it ends; it is known once it serves."""
    server = getattr(getattr(scope.get("app"), "state", None), "server", None)
    if server is not None:
        server.config.timeout_graceful_shutdown = LAST_SECONDS


def _headers(scope: Message, name: bytes) -> list[bytes]:
    pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value for one, value in pairs if one == name]


async def _json(receive: Receive) -> dict[str, Any]:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request was broken off")
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MAX_BYTES:
            raise Refused(413, f"such a request has at most {MAX_BYTES} bytes")
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "such a request is a JSON object")
    return found


async def _respond(send: Send, status: int, content: dict[str, Any] | str) -> None:
    body, kind = (
        (content, b"text/plain; charset=utf-8")
        if isinstance(content, str)
        else (json.dumps(content), b"application/json")
    )
    headers = [(b"content-type", kind), (b"content-length", str(len(body.encode())).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body.encode()})


def _version() -> str:
    from importlib import import_module

    return str(import_module("vllm.version").__version__)
