"""The settings of the generative judge (`judge.name=openai`): what stands under `judge.kwargs`.

They are looked at with the rest of the config, before anything is loaded or asked. Left out on purpose: the
judge (`reward/judges/generative`), and its time limit, which is that of every judge (`judge.time_limit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rs_aligner.address import Address
from rs_aligner.config.base import (
    Count,
    NotNegative,
    Positive,
    Real,
    Section,
    Share,
    Size,
    Text,
    Texts,
    authority_problems,
    file_problems,
    problem,
)
from rs_aligner.config.template import PromptTemplate

CRITERION = (
    "How good is this response to the prompt, from 0 (useless or wrong) to 10 (right, complete and clear)? "
    "Reply with the number alone."
)
TEMPLATE = "The prompt:\n{prompt}\n\nThe response to be judged:\n{response}\n\n{criterion}"
DISAGREEMENT = "disagreement"
"""The component that says how far a judge's verdicts on a text lie apart: their standard deviation."""
_ENDPOINT = "/chat/completions"
_OWN_FIELDS = {
    "model": "model",
    "messages": "template",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "seed": "seed",
    "logprobs": "score.by",
    "top_logprobs": "score.top_logprobs",
}
"""Fields of a request that settings of ours make, with these settings."""


def _as_labels(value: Any) -> Any:
    if isinstance(value, dict) and any(isinstance(label, bool) for label in value):
        raise ValueError(
            "YAML reads Yes and No as true and false: write labels in quotes, {'Yes': 1, 'No': 0}"
        )
    return value


class ScoreConfig(Section):
    """How the score is read from what the model answers."""

    kind: Literal["number", "json", "labels"] = "number"
    """A number alone, a field of a JSON object, or one of a few labels."""
    after: Text | None = None
    """What stands before the verdict, such as `Score:`; it is looked for behind the last one."""
    lowest: Real | None = 0.0
    """The smallest number that is a verdict; null for no bound."""
    highest: Real | None = 10.0
    """The largest number that is a verdict; null for no bound."""
    field: Text = "score"
    """Where a JSON object has the number, dotted."""
    labels: Annotated[dict[str, Real], BeforeValidator(_as_labels)] = Field(default_factory=dict)
    """What each label is worth, such as {good: 1, bad: 0}."""
    by: Literal["text", "logprobs"] = "text"
    """Which label is the verdict: the one that was said, or the mean over their probabilities."""
    top_logprobs: Annotated[Count, Field(le=100)] = 20
    """For how many tokens the server is asked for log-probabilities; many give 20 at most."""
    least_mass: Share = 0.5
    """Probability that the labels must have together, for the mean over them to be a verdict."""

    def problems(self, key: str) -> Iterator[str]:
        """Bounds are in order, and labels can be told apart."""
        if self.lowest is not None and self.highest is not None and self.lowest >= self.highest:
            yield problem(f"{key}.lowest", self.lowest, f"should be below {key}.highest = {self.highest:g}")
        if self.kind == "labels":
            yield from self._labels(key)
        else:
            for name in {"labels", "by"} & self.model_fields_set:
                with_labels = f"plays a part with {key}.kind=labels only"
                yield problem(f"{key}.{name}", getattr(self, name), with_labels)

    def _labels(self, key: str) -> Iterator[str]:
        plain = [label.strip().casefold() for label in self.labels]
        if len(plain) < 2:
            yield problem(f"{key}.labels", self.labels, "should have two or more, such as {good: 1, bad: 0}")
        if len(set(plain)) < len(plain) or "" in plain:
            alone = "no label may be empty, or differ from another in case and white space only"
            yield problem(f"{key}.labels", self.labels, alone)
        if self.by == "logprobs" and self.top_logprobs < len(plain):
            yield problem(f"{key}.top_logprobs", self.top_logprobs, f"there are {len(plain)} labels")


class CriterionConfig(Section):
    """One criterion of a rubric."""

    criterion: Text
    """What stands in the template's place {criterion}."""
    weight: Real = 1.0
    """What its verdict is multiplied by in the reward."""
    score: ScoreConfig | None = None
    """How its score is read; null as `score` says."""


class OpenAIConfig(Section):
    """A generative judge behind an endpoint that speaks OpenAI's chat completions."""

    url: Text
    """The server, up to what `/chat/completions` follows: http://127.0.0.1:8000/v1."""
    model: Text
    """The model's name there."""
    template: Text | None = None
    """What is asked: {prompt}, {response}, {criterion} and keys of the data row; null for a plain one."""
    template_file: Text | None = None
    """A file with the template instead."""
    system: Text | None = None
    """A system message before it; nothing is filled in there."""
    criterion: Text | None = None
    """What stands in the template's place {criterion}; null for one that wants a number from 0 to 10."""
    rubric: dict[str, CriterionConfig] = Field(default_factory=dict)
    """Several criteria by their components' names, each asked about for itself; the reward is their sum."""
    score: ScoreConfig = ScoreConfig()
    marks: bool = True
    """Whether what is filled in stands between marks that it cannot have in it.

    Without them, a row that has the template's own words around a place in it has no score.
    """
    special_tokens: Texts = ()
    """Further special tokens of the judge's chat template, beside the usual ones, which no text may have."""
    samples: Count = 1
    """Verdicts on each criterion, whose mean counts."""
    temperature: NotNegative | None = 0.0
    """Of the judge's sampling; null leaves it to the server."""
    seed: Size | None = 0
    """Seeds of requests are made of it and of what is asked; null sends none."""
    max_tokens: Count | None = 512
    """Tokens of an answer at most; null leaves it to the server."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of a request, such as response_format."""
    concurrency: Count = 16
    """Requests under way at once."""
    requests_per_minute: Positive | None = None
    """How many requests begin in a minute at most; null for no limit."""
    retries: Size = 4
    """How often a request is asked again that the server answers with an error of its own, or no answer."""
    give_up_after: Positive = 600
    """Seconds to wait for a server that is gone, or that wants to be asked later, before a row has failed."""
    startup_timeout: Positive = 10
    """Seconds to wait for the server before the judge is given up."""
    token_variable: Text = "OPENAI_API_KEY"
    """The variable of the environment that holds the server's token, if it wants one."""
    token_file: Text | None = None
    """A file with the token instead."""
    ca_file: Text | None = None
    """File (PEM) of the authority that vouches for an `https://` server; null for the system's."""

    @property
    def address(self) -> Address:
        """Where the server is."""
        return Address.parse(self.url)

    @property
    def template_text(self) -> str:
        """The template, from wherever it is.

        Raises:
            OSError, UnicodeDecodeError: the file cannot be read.
        """
        if self.template_file is not None:
            return Path(self.template_file).read_text(encoding="utf-8")
        return TEMPLATE if self.template is None else self.template

    @property
    def criteria(self) -> dict[str, CriterionConfig]:
        """What is asked, by the components' names; one without a name where there is no rubric."""
        return self.rubric or {"": CriterionConfig(criterion=self.criterion or CRITERION)}

    def problems(self, key: str) -> Iterator[str]:
        """The server has an address, the template its places, and nothing is said twice."""
        yield from self._server(key)
        yield from self._template(key)
        yield from self._request(key)
        if self.rubric and self.criterion is not None:
            yield problem(
                f"{key}.criterion", self.criterion, f"{key}.rubric has some; leave one of the two out"
            )
        for name in {"reward", DISAGREEMENT} & self.rubric.keys():
            yield problem(f"{key}.rubric.{name}", name, "is a component of its own; call it otherwise")
        if self.samples > 1 and self.temperature == 0:
            same = f"at {key}.temperature = 0 all are the same; set that to 1, say"
            yield problem(f"{key}.samples", self.samples, same)

    def _server(self, key: str) -> Iterator[str]:
        try:
            address = self.address
        except ValueError as error:
            yield f"{key}.url: {error}"
            return
        if address.path.endswith(_ENDPOINT):
            base = str(address).removesuffix(_ENDPOINT)
            yield problem(f"{key}.url", self.url, f"should end before {_ENDPOINT}: {base}")
        yield from file_problems(f"{key}.token_file", self.token_file)
        yield from authority_problems(f"{key}.ca_file", self.ca_file)
        if self.ca_file is not None and not address.is_tls:
            yield problem(f"{key}.ca_file", self.ca_file, f"{key}.url is no https:// address; leave it out")

    def _template(self, key: str) -> Iterator[str]:
        if self.template is not None and self.template_file is not None:
            yield f"{key}.template and {key}.template_file are set: leave one of the two out"
            return
        where = f"{key}.template" if self.template_file is None else f"{key}.template_file"
        yield from file_problems(where, self.template_file)
        try:
            places = PromptTemplate(self.template_text).keys
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            yield f"{where}: {error}"
            return
        if "response" not in places:
            yield f"{where} has no place {{response}}, so what is to be judged would not be asked about"
        if "criterion" not in places and (self.rubric or self.criterion is not None):
            asked = "rubric" if self.rubric else "criterion"
            yield f"{where} has no place {{criterion}}, so {key}.{asked} would not be asked"

    def _request(self, key: str) -> Iterator[str]:
        for name in self.extra_body:
            if name in ("n", "stream"):
                yield problem(f"{key}.extra_body.{name}", self.extra_body[name], "a request has one answer")
            elif name in _OWN_FIELDS and getattr(self, name, "") is not None:
                instead = f"is set by {key}.{_OWN_FIELDS[name]}"
                yield problem(f"{key}.extra_body.{name}", self.extra_body[name], instead)
