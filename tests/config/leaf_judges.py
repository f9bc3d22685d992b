"""Judges in the world of `leaf_world.py`: fake servers for the client, and a fake Triton for the server."""

from __future__ import annotations

import contextlib
import logging
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rs_aligner.remote import asking, retry
from rs_aligner.reward.client import client
from rs_aligner.reward.client.in_process import OFFER, LocalJudge
from rs_aligner.reward.server import serve as server
from rs_aligner.reward.server import serving
from rs_aligner.rollout import ScoreFailure

UNORDERED = ("servers", "requests", "queue", "due")  # written down from several threads


def chance_of(*parts: Any) -> float:
    """A number from -1 to 1, the same for the same parts."""
    return random.Random(repr(parts)).uniform(-1, 1)


class Notes:
    """What is written down, by name; values as text, so that nothing changes later."""

    def __init__(self, place: Path) -> None:
        self.place, self._found = place, defaultdict[str, list[str]](list)
        self.handler = logging.Handler(logging.WARNING)
        # A handler that only notes.
        self.handler.emit = lambda record: self.add("warnings", record.getMessage())  # type: ignore[method-assign]  # to listen

    def add(self, name: str, *values: Any) -> None:
        self._found[name].append(repr(values))

    def number(self, name: str) -> int:
        return len(self._found[name])

    def all(self) -> dict[str, Any]:
        return {name: sorted(set(v)) if name in UNORDERED else v for name, v in self._found.items()}


class _Judge:
    """Fails rows that say so; scores the others by chance, the same row of a server always the same."""

    fingerprint = "fake"

    def __init__(self, port: int) -> None:
        self.port = port

    def score_texts(self, prompts: Any, responses: Any, metadata: Any) -> list[Any]:
        rows = zip(prompts, responses, metadata, strict=True)
        return [
            ScoreFailure("it should")
            if row.get("fails")
            else random.Random(f"{self.port}{prompt}{text}").uniform(-1, 1)
            for prompt, text, row in rows
        ]

    def close(self) -> None: ...


def set_up_judges(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    """What the judge's client asks of servers, of the clock, and how long it would go on."""

    class Connection:
        def __init__(
            self, address: Any, name: str, token: str | None = None, *, authority: Any, **_: Any
        ) -> None:
            notes.add("servers", str(address), name, token, authority)
            self.judge = LocalJudge(_Judge(address.port), 64)  # type: ignore[arg-type]  # a stand-in

        def problem(self, timeout: float) -> None: ...

        def offer(self, timeout: float) -> Any:
            return replace(OFFER, inputs=OFFER.inputs | {"tokens", "sequence_lengths"})

        def infer(self, inputs: dict[str, Any], timeout: float, request_id: str = "") -> dict[str, Any]:
            shape = inputs["tokens"].shape[1] if "tokens" in inputs else None
            notes.add("requests", sorted(inputs), shape, timeout)
            if shape is not None:
                number = len(inputs["tokens"])
                texts = [[repr(row[row > 0].tolist()).encode()] for row in inputs["tokens"]]
                columns = {"prompts": [[b""]] * number, "responses": texts, "metadata": [[b"{}"]] * number}
                inputs = {**inputs, **{k: np.array(v, dtype=object) for k, v in columns.items()}}
            return dict(self.judge.infer(inputs, timeout))

        def abort(self) -> None: ...

        close = abort

    patch.setattr(client, "TritonConnection", Connection)
    patch.setattr(asking, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    queue, pool = asking.RowQueue, asking.EndpointPool

    def asker(service: Any, endpoints: Any, how: asking.Asking, *, here: bool = False) -> None:
        notes.add("patience", *_patience(how))

    _note(patch, notes, asking.Asker, "__init__", asker)
    _note(patch, notes, queue, "__init__", lambda size, room: notes.add("queue", size, room))
    _note(patch, notes, queue, "put", lambda row: notes.add("due", round(row.due - 1000, 6)))
    _note(patch, notes, pool, "__init__", lambda _, limit, *__: notes.add("in flight", limit))
    _note(patch, notes, pool, "open", lambda timeout: notes.add("startup", timeout))

    def limited(spec: str, kwargs: dict[str, Any], seconds: float, workers: int) -> Any:
        from rs_aligner.reward.judges.functions import users_judge

        notes.add("time limits", spec, seconds, workers)
        return users_judge(spec, kwargs)[0]

    patch.setattr("rs_aligner.reward.judges.load.LimitedJudge", limited)


def _note(patch: pytest.MonkeyPatch, notes: Notes, kind: type, name: str, say: Callable[..., None]) -> None:
    """Lets `say` see the arguments of a method, which then goes on."""
    original = getattr(kind, name)

    def method(self: Any, *args: Any, **named: Any) -> Any:
        say(*args, **named)
        return original(self, *args, **named)

    patch.setattr(kind, name, method)


def _patience(how: asking.Asking) -> tuple[Any, ...]:
    """How often a request that always fails is sent, for how long, and how long an outage is sat out."""
    now = 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: now))
        patch.setattr(retry, "jittered", lambda _: 1.0)
        patience = how.patience()
        while (delay := patience.failed()) is not None:
            now += delay
        return patience.failures, now, patience.outage


def set_up_server(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    """Triton, and clients that ask it once."""
    bound: dict[str, Any] = {}

    class Triton:
        def __init__(self, num_stubs: int, *, config: Any, **_: Any) -> None:
            notes.add("triton", {key: value for key, value in config.items() if key != "log_file"})
            notes.add("log", config["log_file"].is_relative_to(notes.place))

        def bind(self, *, config: Any, infer_func: Any, model_name: str, **_: Any) -> None:
            notes.add("served", model_name, config)
            bound["ask"] = infer_func[0]

        def run(self) -> None: ...

        stop = run

    def watch(*_: Any) -> str:
        text = np.array([[b"a"], [b"bb"], [b"ccc"], [b"dd"], [b"e"]], dtype=object)
        meta = np.array([[b"{}"]] * 5, dtype=object)
        tokens = {"tokens": np.array([[70, 71, 72]]), "sequence_lengths": np.array([[3]])}
        for name, data in {
            "texts": {"prompts": text, "responses": text, "metadata": meta},
            "tokens": tokens,
        }.items():
            try:
                (answer,) = bound["ask"]([SimpleNamespace(data=data, parameters={})])
                notes.add(
                    name, answer["rewards"].tolist(), answer["errors"].tolist(), answer["components"].tolist()
                )
            except ValueError as error:
                notes.add(name, str(error))
        raise SystemExit(0)

    def endpoint(address: str, port: int, _: Any) -> Any:
        notes.add("metrics address", address, port)
        return contextlib.nullcontext(port or 1234)

    def address(host: str, port: int) -> str:
        notes.add("address", host, port)
        return host

    for name in ("_end_on_signals", "use_our_libpython"):
        patch.setattr(server, name, lambda *_: None)
    for name, fake in {"_watch": watch, "metrics_endpoint": endpoint}.items():
        patch.setattr(server, name, fake)
    patch.setattr("rs_aligner.remote.listening.free_address", address)
    patch.setattr(server, "any_free_port", lambda: 4321)
    for name in ("end_triton", "_stop_or_give_up", "_amend"):
        patch.setattr(serving, name, lambda *_: None)
    for name in ("TritonConfig", "DynamicBatcher", "ModelConfig"):
        patch.setattr(serving, name, dict)
    patch.setattr(serving, "WatchedTriton", Triton)
    patch.setattr("rs_aligner.reward.server.check.TIMING_SECONDS", 0.0)
