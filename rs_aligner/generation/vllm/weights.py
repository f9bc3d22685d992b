"""New weights for a vLLM server: does it see them, does it take them, does it compute with them?

In this order: it reads the marker of their folder; it is paused (what is under way ends first), reloads,
forgets the keys and values of the old ones, and resumes; then it answers the canary. Adapters are put beside
the weights that it was started with, under a name of their own, without a pause. What fails raises with a
line that names the folder and what would work.

The routes are those of vLLM's development mode (`VLLM_SERVER_DEV_MODE=1`) and those of our guard, both of
which `rs-aligner serve-rollouts` sees to. Left out on purpose: who is asked when (`decoder.py`), and weights
that travel through the GPUs' own network.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rs_aligner.generation.vllm.canary import LENGTH, Canary, Continuation
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.folder import Sent
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.transport import HTTPAnswer, message_of

SEEN_WITHIN = 20.0  # a network's file system may take some seconds to show another host's file
_LOOK_SECONDS = 0.5
_RESET_TRIES = 5
_START = "start it with rs-aligner serve-rollouts"


class Update:
    """One server that takes new weights.

    Args:
        link: to the server.
        sent: what it is to take.
        base: the name of its model.
        timeout: seconds for each of its answers; for the pause, too, in which requests come to their end.
    """

    def __init__(self, link: VllmConnection, sent: Sent, base: str, timeout: float) -> None:
        self._link, self._sent, self._base, self._timeout = link, sent, base, timeout

    @property
    def _name(self) -> str:
        return self._sent.name(self._base)

    def run(self, *, wait: float = SEEN_WITHIN) -> None:
        """All of it.

        Args:
            wait: seconds until it must see the folder.

        Raises:
            TransportError: it does not answer, or did not take them.
            ValueError: it cannot, which time will not mend: it does not see the folder, or lacks the routes.
        """
        self._sees(wait)
        if self._sent.is_adapter:
            self._add()
        else:
            self._reload()

    def _sees(self, wait: float) -> None:
        folder, until = self._sent.folder, time.monotonic() + wait
        path = f"/rs_aligner/marker?folder={quote(str(folder), safe='')}"
        while True:
            answer = self._link.exchange("GET", path, self._timeout)
            if answer.status == 200 and answer.body.decode("utf-8", "replace").strip() == self._sent.word:
                return
            if answer.status in (401, 404, 405) and b"rs_aligner" not in answer.body:
                raise ValueError(f"it has no guard that could read the marker of new weights: {_START}")
            if answer.status == 403 or time.monotonic() > until:  # time does not change what it may
                break
            time.sleep(_LOOK_SECONDS)
        if answer.status == 403:
            raise ValueError(
                f"it may not read {folder}: {message_of(answer)}; start it with weights_root at the "
                "folder of the run, or above it"
            )
        what = "another folder there" if answer.status == 200 else "nothing there"
        raise ValueError(
            f"it does not see {folder}, where the weights lie (it has {what}): put the run's folder on a "
            "file system that all hosts share, under the same path"
        )

    def _reload(self) -> None:
        self._post("/pause?mode=wait", "it cannot be paused")
        try:
            folder = str(self._sent.folder)
            body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self._post("/collective_rpc", f"it did not take {folder}, and has to be started again", body)
            self._forget()
        finally:
            with contextlib.suppress(TransportError):  # a dead engine has told why
                self._link.exchange("POST", "/resume", self._timeout)

    def _forget(self) -> None:
        """Let it drop the keys and values that the old weights made of prompts."""
        for _ in range(_RESET_TRIES):
            if _json(self._post("/reset_prefix_cache", "its prefix cache stays")).get("success") is True:
                return
            time.sleep(_LOOK_SECONDS)
        raise TransportError("its prefix cache, which is of the old weights, cannot be reset", "refused", 503)

    def _add(self) -> None:
        sent = self._sent
        body = {"lora_name": self._name, "lora_path": str(sent.folder)}
        answer = self._link.exchange("POST", "/v1/load_lora_adapter", self._timeout, _body(body), _JSON)
        if answer.status != 200 and b"already been loaded" not in answer.body:
            raise _refused(answer, f"it did not take the adapter {sent.folder}, {_START} with lora_rank")
        for other in self._adapters():
            self._link.exchange(
                "POST", "/v1/unload_lora_adapter", self._timeout, _body({"lora_name": other}), _JSON
            )

    def _adapters(self) -> list[str]:
        """The adapters of ours that are older."""
        found = _json(self._link.exchange("GET", "/v1/models", self._timeout)).get("data", [])
        names = [str(one.get("id")) for one in found if isinstance(one, dict)]
        return [one for one in names if one.startswith(f"{self._base}@") and one != self._name]

    def _post(self, path: str, what: str, body: Mapping[str, Any] | None = None) -> HTTPAnswer:
        sent = b"" if body is None else _body(body)
        answer = self._link.exchange("POST", path, self._timeout, sent, _JSON)
        if answer.status == 404:
            route = path.partition("?")[0]
            raise ValueError(f"it has no {route}, {_START}, or with VLLM_SERVER_DEV_MODE=1 and our guard")
        if answer.status != 200:
            raise _refused(answer, what)
        return answer


def check_canary(link: VllmConnection, canary: Canary, name: str, timeout: float) -> str | None:
    """Let a server answer the canary.

    Args:
        link: to it.
        canary: what it should answer.
        name: by which its weights are asked for.
        timeout: seconds that it may take.

    Returns:
        What is wrong with its answer; None if nothing is.

    Raises:
        TransportError: it does not answer.
    """
    body = {
        "model": name,
        "prompt": [list(prompt) for prompt in canary.prompts],
        "max_tokens": LENGTH,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    answer = link.exchange("POST", "/v1/completions", timeout, _body(body), _JSON)
    if answer.status != 200:
        raise _refused(answer, "it does not answer by the weights that it was given")
    try:
        return canary.problem(_continuations(answer, len(canary.prompts)))
    except ValueError as error:
        return str(error)


_JSON = {"Content-Type": "application/json"}


def _body(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()


def _refused(answer: HTTPAnswer, what: str) -> TransportError:
    message = f"{what}: HTTP {answer.status}: {message_of(answer)}"
    return TransportError(message, "refused", answer.status)


def _json(answer: HTTPAnswer) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(answer.body)
        if isinstance(found, dict):
            return found
    return {}


def _continuations(answer: HTTPAnswer, number: int) -> Sequence[Continuation]:
    """The continuations in an answer, in the order of the prompts.

    Raises:
        ValueError: it is none, or not of so many.
    """
    try:
        choices = sorted(json.loads(answer.body)["choices"], key=lambda one: int(one["index"]))
        found = [
            ([int(one) for one in each["token_ids"]], [float(x) for x in each["logprobs"]["token_logprobs"]])
            for each in choices
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its answer to the canary cannot be read: {error!r}") from None
    if len(found) != number:
        raise ValueError(f"it answers {len(found)} of {number} canaries")
    return found
