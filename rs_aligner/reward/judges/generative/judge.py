"""The generative judge: a language model behind a server is asked what a response is worth.

Each row is asked about on its own, each criterion of a rubric and each sample too; what the answers say is
put together here. How a server is asked, waited for and asked again is the business of `remote.asking`, as
with a run's judges. Left out on purpose: several servers, which a gateway stands before, and the model's
weights in the fingerprint, which no server tells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from rs_aligner.config.openai_judge import DISAGREEMENT, CriterionConfig, OpenAIConfig, ScoreConfig
from rs_aligner.config.reading import read_section
from rs_aligner.remote.asking import Asker, Asking
from rs_aligner.remote.endpoint import Endpoint, Role
from rs_aligner.remote.errors import UNTRUSTED, BadAnswer, TransportError
from rs_aligner.remote.token import read_token
from rs_aligner.remote.transport import Conversation
from rs_aligner.reward.judges.base import Metadata, content_hash, whole_answers
from rs_aligner.reward.judges.functions import AnyRow
from rs_aligner.reward.judges.generative.asking import Chat, Question, Result
from rs_aligner.reward.judges.generative.completion import NoVerdict
from rs_aligner.reward.judges.generative.pace import Pace
from rs_aligner.reward.judges.generative.template import Template, Unaskable
from rs_aligner.reward.judges.generative.verdicts import Verdict, joined, read_verdict
from rs_aligner.rollout import Score, ScoreFailure

_logger = logging.getLogger("rs_aligner")

KEY = "judge.kwargs"
ROLE = Role("judge's server", "answers")
_ROOM = 4096
_SETTLED = ("url", "concurrency", "requests_per_minute", "retries", "give_up_after", "startup_timeout")
_SECRET = ("token_variable", "token_file", "ca_file", "template_file")
_TRIAL = ("What is 2 + 2?", "4", AnyRow(id="made-up"))
_BETWEEN_TRIALS = 0.5


class OpenAIJudge:
    """A language model behind OpenAI's chat completions, as a judge.

    It may be called from several threads at once; they share its requests.

    Args:
        time_limit: seconds that a request may take; None for no limit.
        settings: as `OpenAIConfig`.

    Raises:
        ValueError: the settings cannot be right, or the server does not take them.
    """

    takes_calls_at_once = True

    def __init__(self, *, time_limit: float | None = 5.0, **settings: Any) -> None:
        self._cfg = cfg = read_section(OpenAIConfig, settings, KEY)
        template = cfg.template_text
        self._template = Template(template, marks=cfg.marks, special_tokens=cfg.special_tokens)
        decides = cfg.model_dump(mode="json", exclude={*_SETTLED, *_SECRET, "template"})
        self.fingerprint = content_hash("openai", template, decides)
        self._knows_spread = cfg.samples > 1 or any(
            self._how(one).by == "logprobs" for _, one in self._rubric()
        )
        token = read_token(f"{KEY}.token_file", cfg.token_file, cfg.token_variable)
        if token is not None and not (cfg.address.is_tls or cfg.address.is_loopback):
            _logger.warning("the judge's token can be read on its way to %s: it is no https://", cfg.address)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.rows_at_once = cfg.concurrency
        self._is_closed = False
        self._pace = Pace(cfg.requests_per_minute)
        self._chat = Chat(
            self._pace,
            time_limit=time_limit,
            retries=cfg.retries,
            give_up_after=cfg.give_up_after,
            secret=token,
        )
        connect = partial(Conversation, cfg.address, headers, cfg.ca_file)
        self._endpoint: Endpoint[Conversation] = Endpoint(str(cfg.address), connect)
        self._asker: Asker[Question, Result, Conversation] = Asker(self._chat, [self._endpoint], _asking(cfg))
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def counters(self) -> dict[str, float]:
        """Requests, tokens, and what went wrong, since the start."""
        return self._chat.counters.all()

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Score | ScoreFailure]:
        """A score for each row, or why it has none."""
        rows = zip(prompts, whole_answers(responses, metadata), metadata, strict=True)
        asked = [self._ask(*row) for row in rows]
        self._asker.flush()
        return [one if isinstance(one, ScoreFailure) else self._score(one) for one in asked]

    def close(self) -> None:
        """Cut requests short; rows without a verdict fail."""
        self._pace.close()
        self._asker.close()
        if not self._is_closed:
            self._is_closed = True
            told = ", ".join(
                f"{number:,.0f} {name.replace('_', ' ')}" for name, number in self.counters.items()
            )
            _logger.info("the judge %s: %s", self._cfg.model, told)

    def _ask(
        self, prompt: str, response: str, row: Metadata
    ) -> dict[str, list[Future[Result]]] | ScoreFailure:
        """Hand in what is to be asked of a row; the answers by question."""
        try:
            asked = {name: list(self._questions(one, prompt, response, row)) for name, one in self._rubric()}
            return {
                name: [self._asker.submit(question, 0) for question in questions]
                for name, questions in asked.items()
            }
        except (Unaskable, ValueError) as error:
            return ScoreFailure(f"the judge cannot be asked about this row: {error}")
        except RuntimeError as error:  # closed meanwhile
            return ScoreFailure(str(error))

    def _rubric(self) -> Iterator[tuple[str, CriterionConfig]]:
        yield from self._cfg.criteria.items()

    def _how(self, asked: CriterionConfig) -> ScoreConfig:
        return asked.score or self._cfg.score

    def _questions(
        self, asked: CriterionConfig, prompt: str, response: str, row: Mapping[str, Any]
    ) -> Iterator[Question]:
        """One question, as often as it is to be asked."""
        cfg, how = self._cfg, self._how(asked)
        text = self._template.fill(asked.criterion, prompt, response, row)
        system = [] if cfg.system is None else [{"role": "system", "content": cfg.system}]
        fields: dict[str, Any] = {
            "model": cfg.model,
            "messages": [*system, {"role": "user", "content": text}],
            **{
                name: value
                for name, value in (("max_tokens", cfg.max_tokens), ("temperature", cfg.temperature))
                if value is not None
            },
            **cfg.extra_body,
        }
        if how.kind == "labels" and how.by == "logprobs":
            fields |= {"logprobs": True, "top_logprobs": how.top_logprobs}
        for number in range(cfg.samples):
            seeded = {} if cfg.seed is None else {"seed": _seed(cfg.seed, number, fields)}
            yield Question({**fields, **seeded}, how)

    def _score(self, asked: Mapping[str, Sequence[Future[Result]]]) -> Score | ScoreFailure:
        """The reward of a row: the weighted sum of its questions' mean verdicts."""
        found: dict[str, Verdict] = {}
        for name, futures in asked.items():
            results = [future.result() for future in futures]
            failure = next((one for one in results if isinstance(one, ScoreFailure)), None)
            if failure is not None:
                return ScoreFailure(f"{name}: {failure.reason}" if name else failure.reason)
            found[name] = joined([one for one in results if isinstance(one, Verdict)])
        weights = {name: question.weight for name, question in self._rubric()}
        components = {name: verdict.value for name, verdict in found.items() if name}
        if self._knows_spread:
            spread = math.fsum(weights[name] ** 2 * one.variance for name, one in found.items())
            components[DISAGREEMENT] = math.sqrt(spread)
        reward = math.fsum(weights[name] * one.value for name, one in found.items())
        return Score(reward, components)

    def _open(self) -> None:
        """Wait for the server, and see that it takes what it will be asked.

        Raises:
            ValueError: it does not.
        """
        cfg, until = self._cfg, time.monotonic() + self._cfg.startup_timeout
        try:
            self._asker.open(cfg.startup_timeout)
        except TransportError as error:
            why = str(error).removeprefix(f"{self._endpoint.url}: ")
            nobody = f"no server answers at {self._endpoint.url} after {cfg.startup_timeout:g} s"
            raise ValueError(
                f"{KEY}.url: {nobody}: {why}; start it, correct the address, or raise {KEY}.startup_timeout"
            ) from None
        for name, asked in self._rubric():
            question = next(self._questions(asked, *_TRIAL))
            while not self._trial(name, question, until):
                time.sleep(_BETWEEN_TRIALS)
        models = self._chat.models(self._endpoint.connect())
        if models and cfg.model not in models:
            told = "%s.model is %s, and the server at %s, which answers all the same, has %s"
            _logger.warning(told, KEY, cfg.model, self._endpoint.url, ", ".join(models))

    def _trial(self, name: str, question: Question, until: float) -> bool:
        """Ask about a made-up row; whether there was an answer, or it should be asked again.

        Raises:
            ValueError: what will not.
        """
        began, link = time.monotonic(), self._endpoint.connect()
        try:
            completion = self._chat.complete(link, question)
            if question.reading.by == "logprobs" and completion.tokens is None:
                raise ValueError(
                    f"{KEY}.score.by is logprobs, and {self._endpoint.url} gives none; set it to text"
                )
            verdict = read_verdict(completion, question.reading)
        except NoVerdict as error:
            _logger.warning("the judge %s, asked about a made-up row%s: %s", *self._called(name), error)
            return True
        except (TransportError, BadAnswer) as error:
            passes = isinstance(error, BadAnswer) or (
                error.kind not in ("timeout", *UNTRUSTED) and (error.status or 500) >= 500
            )
            if passes and time.monotonic() < until:
                return False
            raise ValueError(f"judge openai: {self._chat.explained(self._endpoint, error)}") from None
        seconds = time.monotonic() - began
        _logger.info("the judge %s answers%s: %g, in %.2f s", *self._called(name), verdict.value, seconds)
        return True

    def _called(self, name: str) -> tuple[str, str]:
        return self._cfg.model, f" ({name})" if name else ""


def _asking(cfg: OpenAIConfig) -> Asking:
    return Asking(
        batch_size=1,
        wait_seconds=0.0,
        room=_ROOM,
        in_flight=cfg.concurrency,
        give_up_after=cfg.give_up_after,
        attempts=1,
        role=ROLE,
    )


def _seed(seed: int, number: int, fields: Mapping[str, Any]) -> int:
    """Of one request: the same for the same text, another one for each sample."""
    said = json.dumps([seed, number, fields["messages"]]).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=4).digest(), "big") >> 1
