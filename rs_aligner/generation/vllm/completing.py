"""What vLLM's servers are asked: who they are, and for rollouts (`order.py`). A `remote.asking.Service`.

A server is asked for rollouts once it has shown that it samples from a model with the policy's vocabulary,
tells token ids, and that its log-probabilities are those before temperature and filters: one token that it
may not choose otherwise tells all of it; and once it has the policy's weights (`handover`).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rs_aligner.config.rollout_servers import ROLLOUTS_TOKEN
from rs_aligner.generation.allowed import NEVER, AllowedTokens
from rs_aligner.generation.vllm.completion import Choice, Choices
from rs_aligner.generation.vllm.connection import VllmConnection
from rs_aligner.generation.vllm.handover import Handover
from rs_aligner.generation.vllm.order import COMPLETIONS, Order, Result, Unsampled
from rs_aligner.remote.endpoint import Endpoint
from rs_aligner.remote.errors import UNTRUSTED, BadAnswer, TransportError
from rs_aligner.remote.hints import hint
from rs_aligner.remote.queue import Waiting
from rs_aligner.remote.retry import UNAUTHORIZED, AskError, is_transient
from rs_aligner.rollout_server.barred import word_of

SECTION = "generation.servers"
_TRIAL_SECONDS = 30.0  # for one token


class NotOurModel(ValueError):
    """A server that samples from something else, or tells too little; waiting will not help."""


@dataclass(frozen=True, slots=True)
class About:
    """What a server says of itself.

    Attributes:
        model: the name by which it is asked for completions.
        max_length: tokens of prompt and response that it takes; None if it does not tell.
        lora_rank: of the largest adapters that it takes, as our guard tells; 0 for none.
        barred: the word of the ids that it can bar, as our guard tells; None for none.
    """

    model: str
    max_length: int | None
    lora_rank: int = 0
    barred: str | None = None


class Completing:
    """What servers are asked for. Called from several threads.

    Args:
        allowed: which tokens the policy may sample, of all that it has.
        request_timeout: seconds for all rollouts of a prompt.
        handover: the weights that they sample from.
    """

    def __init__(self, allowed: AllowedTokens, request_timeout: float, handover: Handover) -> None:
        self._allowed, self._timeout, self._handover = allowed, request_timeout, handover
        self._lock = threading.Lock()
        self._about: dict[str, About] = {}
        self._word = word_of(allowed.kinds != NEVER)
        self._relies = False  # on servers that bar these ids

    @property
    def max_length(self) -> int | None:
        """Tokens of prompt and response that every server takes; None if none tells."""
        with self._lock:
            return min((one.max_length for one in self._about.values() if one.max_length), default=None)

    @property
    def lora_rank(self) -> int:
        """Of the largest adapters that every server takes; 0 for none."""
        with self._lock:
            return min((one.lora_rank for one in self._about.values()), default=0)

    def barred(self) -> str | None:
        """The word of the ids that may not come, if all servers bar them; those that join later have to."""
        with self._lock:
            self._relies = all(one.barred == self._word for one in self._about.values())
            return self._word if self._relies else None

    def try_out(self, endpoint: Endpoint[VllmConnection], link: VllmConnection, ready_timeout: float) -> None:
        """Find out whether a server samples from the policy's kind of model.

        Raises:
            TransportError: it does not answer now.
            NotOurModel, ConnectionError: waiting will not help.
        """
        try:
            link.get("/health", ready_timeout)
            about = _about(link.get("/v1/models", ready_timeout), _told(link, ready_timeout))
            self._try_token(link, about)
            self._handover.admit(link, about.model)
            with self._lock:
                self._see_barred(about)
                self._about[endpoint.url] = about
        except BadAnswer as error:
            raise NotOurModel(f"{endpoint.url} is no server of vLLM: {error}") from None
        except ValueError as error:
            raise NotOurModel(f"{endpoint.url}: {error}") from None
        except TransportError as error:
            if error.kind in UNTRUSTED or error.status in UNAUTHORIZED:
                raise ConnectionError(self.explained(endpoint, error)) from error
            raise

    def ask(
        self,
        endpoint: Endpoint[VllmConnection],
        link: VllmConnection,
        batch: Sequence[Waiting[Order, Result]],
    ) -> list[Result]:
        """The rollouts of the only order of a batch, which are handed on as they end."""
        [waiting] = batch
        order, model = waiting.row, self._handover.name(self._about[endpoint.url].model)
        check = partial(self._handover.check, link)
        try:
            order.ask(link, model, self._timeout, check)
        except (TransportError, BadAnswer) as error:
            if order.run is None:
                waiting.resolve(None)
            if isinstance(error, TransportError):
                check(error.status)
            raise
        return [None]

    def explained(self, endpoint: Endpoint[VllmConnection], error: AskError) -> str:
        """With the key that may mend it."""
        return f"{endpoint.url}: {error}{hint(error, SECTION, ROLLOUTS_TOKEN)}"

    def failure(self, reason: str) -> Result:
        """Never a rollout."""
        return Unsampled(reason)

    def _see_barred(self, about: About) -> None:
        """Whether it can bar the ids that may not come, where others do, or bars other ones.

        Raises:
            NotOurModel: it does.
        """
        if self._word not in (None, about.barred) and (about.barred is not None or self._relies):
            has = "its tokenizer has other ids than the policy's" if about.barred else "it bars no ids"
            raise NotOurModel(f"{has}: start it with rs-aligner serve-rollouts from the policy's folder")

    def _try_token(self, link: VllmConnection, about: About) -> None:
        """Ask for the last token that the policy may sample, as if there were no other.

        Raises:
            NotOurModel: it has another vocabulary, or tells other log-probabilities.
        """
        vocab_size = len(self._allowed.kinds)
        last = int(np.flatnonzero(self._allowed.kinds != NEVER)[-1])
        body = {
            "model": about.model,
            "prompt": [last],
            "max_tokens": 1,
            "temperature": 1.0,
            "ignore_eos": True,
            "allowed_token_ids": [last],
            "logit_bias": {str(vocab_size - 1): 0.0},
            "logprobs": 0,
            "return_token_ids": True,
            "stream": True,
        }
        needs = f"the policy has {vocab_size} ids: serve the model that is trained"
        try:
            choice = _only(link, body)
        except TransportError as error:
            if error.kind != "refused" or is_transient(error) or error.status in UNAUTHORIZED:
                raise
            raise NotOurModel(f"its model has another vocabulary ({error}); {needs}") from None
        if choice.tokens != [last]:
            raise NotOurModel(f"it sampled {choice.tokens} where only token {last} may come")
        if choice.log_probs == [0.0]:
            what = "its log-probabilities are those after temperature and filters"
            raise NotOurModel(f"{what}: start it with --logprobs-mode raw_logprobs, vLLM's default")
        try:
            _only(link, {**body, "logit_bias": {str(vocab_size): 0.0}})
        except TransportError as error:
            if error.kind == "refused" and not is_transient(error):
                return
            raise
        raise NotOurModel(f"its model has another vocabulary, with more ids; {needs}")


def _only(link: VllmConnection, body: Mapping[str, Any]) -> Choice:
    """The answer to a request for one token."""
    choices = Choices(1, 1)
    with link.stream(COMPLETIONS, _TRIAL_SECONDS, body) as events:
        for event in events:
            choices.take(event)
    [choice] = choices.finish()
    return choice


def _told(link: VllmConnection, timeout: float) -> Mapping[str, Any]:
    """What our guard tells of a server; nothing where there is none."""
    try:
        found = link.get("/rs_aligner/about", timeout)
    except (TransportError, BadAnswer):
        return {}
    # Adapters go beside the weights that it was started with: it takes none where it has been given others.
    ours = dict(found) if isinstance(found, dict) else {}
    return ours if link.weights is None else {**ours, "lora_rank": None}


def _about(found: Any, told: Mapping[str, Any]) -> About:
    """What `/v1/models` says of the model itself, not of adapters for it.

    Raises:
        BadAnswer: nothing of a model.
    """
    try:
        models = [one for one in found["data"] if not one.get("parent")]
        length = models[0].get("max_model_len")
        length = length if isinstance(length, int) else None
        return About(str(models[0]["id"]), length, int(told.get("lora_rank") or 0), told.get("barred"))
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        raise BadAnswer("/v1/models names no model") from None
