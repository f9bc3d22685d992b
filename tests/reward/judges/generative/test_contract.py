"""The stand-in answers as a real server does: the same questions to both, and the judge before both.

The real one is vLLM on a CPU with a small model of stories. Or it is a server that runs already, whose URL is
in `RS_ALIGNER_TEST_OPENAI` and whose token in OPENAI_API_KEY: llama.cpp's was one. What is vLLM's alone is
not asked of others.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.address import Address
from rs_aligner.config import JudgeConfig
from rs_aligner.remote.transport import Conversation, HTTPAnswer
from rs_aligner.reward.judges import load_judge
from rs_aligner.rollout import Score, ScoreFailure
from tests.reward.judges.generative.stand_in import MODEL, OWNER, stand_in
from tests.vllm_server import STORIES, vllm_server

pytestmark = pytest.mark.timeout(240)

TOKEN = "a-secret-of-this-test"
WHERE = "RS_ALIGNER_TEST_OPENAI"
PROMPT = [{"role": "user", "content": "Once upon a time"}]
LABELS = {"kind": "labels", "labels": {"A": 1, "B": 0}}
PLAIN = "{criterion} {prompt} {response}"


@dataclass(frozen=True)
class Server:
    url: str
    model: str
    token: str | None
    owner: str = OWNER

    def needs_vllm(self) -> None:
        if self.owner != OWNER:
            pytest.skip(f"what vLLM does, and not {self.owner}")

    def ask(self, path: str = "/chat/completions", token: str | None = None, **fields: Any) -> HTTPAnswer:
        shown = self.token if token is None else token
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {shown}"}
        body = {"model": self.model, "messages": PROMPT, "max_tokens": 4, "temperature": 0, **fields}
        conversation = Conversation(Address.parse(self.url), headers)
        return conversation.exchange("POST", path, 60, json.dumps(body).encode())

    def choice(self, **fields: Any) -> Any:
        answer = self.ask(**fields)
        assert answer.status == 200, answer.body
        [choice] = json.loads(answer.body)["choices"]
        return choice


@contextlib.contextmanager
def vllm(python: Path, model: Path, folder: Path) -> Iterator[Server]:
    (folder / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    switches = ("--api-key", TOKEN, "--chat-template", str(folder / "chat.jinja"))
    with vllm_server(python, model, folder, *switches, name=MODEL) as running:
        yield Server(f"{running.url}/v1", MODEL, TOKEN)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if request.param == "stand-in":
        with stand_in(TOKEN) as running:
            yield Server(running.url, MODEL, TOKEN)
        return
    where = os.environ.get(WHERE, "")
    if not where:
        python, model = (request.getfixturevalue(name) for name in ("vllm_python", "test_data"))
        with vllm(python, model / STORIES, tmp_path_factory.mktemp("vllm")) as real:
            yield real
        return
    token = os.environ.get("OPENAI_API_KEY")
    asked = urllib.request.Request(f"{where}/models", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=20) as answer:
        [model] = json.load(answer)["data"]
    yield Server(where, model["id"], token, model["owned_by"])


@contextlib.contextmanager
def judging(server: Server, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[Any]:
    monkeypatch.setenv("OPENAI_API_KEY", server.token or "")
    kwargs = {"url": server.url, "model": server.model, "template": PLAIN, "max_tokens": 4, **settings}
    with contextlib.closing(load_judge(JudgeConfig(name="openai", kwargs=kwargs, time_limit=60))) as judge:
        yield judge


def test_a_completion_has_a_text_a_reason_and_its_cost(server: Server) -> None:
    found = json.loads(server.ask().body)
    [choice] = found["choices"]
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["finish_reason"] == "length"
    usage = found["usage"]
    assert usage["completion_tokens"] == 4
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4


def test_the_same_question_has_the_same_answer_at_temperature_zero(server: Server) -> None:
    assert server.choice()["message"] == server.choice()["message"]


def test_each_token_has_the_likeliest_ones_and_the_tokens_are_the_text(server: Server) -> None:
    choice = server.choice(logprobs=True, top_logprobs=5)
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert len(tokens) == 4
    for token in tokens:
        chances = [one["logprob"] for one in token["top_logprobs"]]
        assert len(chances) == 5
        assert chances == sorted(chances, reverse=True)
        assert 0 < math.fsum(map(math.exp, chances)) <= 1 + 1e-3
    assert server.choice().get("logprobs") is None


def test_an_answer_that_is_bound_to_a_choice_is_one_of_it_and_ends(server: Server) -> None:
    server.needs_vllm()
    choice = server.choice(structured_outputs={"choice": ["good", "bad"]}, max_tokens=8)
    assert choice["message"]["content"] in ("good", "bad")
    assert choice["finish_reason"] == "stop"


def test_a_text_that_is_too_long_is_refused_in_words(server: Server) -> None:
    answer = server.ask(messages=[{"role": "user", "content": "abc " * 2000}])
    assert answer.status == 400
    assert "context" in json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [({"model": "another"}, 404, "another"), ({"top_logprobs": 50, "logprobs": True}, 400, "50")],
    ids=["model", "logprobs"],
)
def test_what_it_does_not_take_is_refused_in_words(
    server: Server, asked: dict[str, Any], status: int, message: str
) -> None:
    server.needs_vllm()
    answer = server.ask(**asked)
    assert answer.status == status
    assert message in json.loads(answer.body)["error"]["message"]


def test_who_has_no_token_and_what_is_elsewhere_is_refused(server: Server) -> None:
    if not server.token:
        pytest.skip("this server takes anybody")
    answer = server.ask(token="guess")
    assert answer.status == 401
    assert json.loads(answer.body)["error"]
    base = server.url.removesuffix("/v1")
    elsewhere = Conversation(Address.parse(base)).exchange("POST", "/elsewhere", 20, b"{}")
    assert elsewhere.status in (401, 404)


def test_special_tokens_in_a_message_are_read_as_such_unless_the_template_breaks_them(
    server: Server,
) -> None:
    from rs_aligner.reward.judges.generative.template import Template

    def cost(text: str) -> int:
        answer = server.ask(messages=[{"role": "user", "content": text}])
        cost: int = json.loads(answer.body)["usage"]["prompt_tokens"]
        return cost

    broken = Template("{response}", marks=False).fill("", "", "a</s>b", {})
    assert cost("a</s>b") == cost("ab") + 1 or cost("a</s>b") == cost("a b")
    assert cost(broken) > cost("a</s>b") + 1


def test_the_mean_over_labels_is_a_score_and_the_same_one_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {**LABELS, "by": "logprobs", "least_mass": 0.001}
    with judging(server, monkeypatch, score=how, max_tokens=1) as judge:
        first = judge.score_texts(["Say A or B:"] * 3, ["A", "B", "cat"], [{}, {}, {}])
        again = judge.score_texts(["Say A or B:"] * 3, ["A", "B", "cat"], [{}, {}, {}])
        assert judge.counters["requests"] == 7, "one is the trial"
        assert judge.counters["completion_tokens"] == 7
        assert judge.counters["prompt_tokens"] > 70
    for one, other in zip(first, again, strict=True):
        assert isinstance(one, Score)
        assert 0 < one.reward < 1
        assert 0 < one.components["disagreement"] <= 0.5
        assert one.reward == pytest.approx(other.reward, abs=1e-3)


def test_a_label_that_the_server_is_bound_to_is_a_score(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.needs_vllm()
    bound = {"structured_outputs": {"choice": ["A", "B"]}}
    with judging(server, monkeypatch, score=LABELS, extra_body=bound) as judge:
        scores = judge.score_texts(["x"] * 2, ["one", "two"], [{}, {}])
    assert {score.reward for score in scores} <= {0.0, 1.0}


def test_what_a_model_of_stories_says_is_no_number(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with judging(server, monkeypatch) as judge:
        [score] = judge.score_texts(["x"], ["y"], [{}])
        assert judge.counters["unreadable_answers"] == 1
    assert isinstance(score, ScoreFailure)
    assert "the verdict cannot be read" in score.reason


def test_a_row_that_is_too_long_fails_alone_and_is_not_asked_about_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {**LABELS, "by": "logprobs", "least_mass": 0.001}
    with judging(server, monkeypatch, score=how, max_tokens=1) as judge:
        long, short = judge.score_texts(["x"] * 2, ["y " * 3000, "y"], [{}, {}])
        assert judge.counters["requests"] == 3
    assert isinstance(short, Score)
    assert isinstance(long, ScoreFailure)
    assert "HTTP 400: " in long.reason
    assert "context" in long.reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "another"}, r"HTTP 404: The model `another` does not exist.*judge\.kwargs\.model"),
        ({"token_variable": "NOBODYS_TOKEN"}, r"HTTP 401: .*; see judge\.kwargs\.token_file"),
        (
            {"score": {**LABELS, "by": "logprobs", "top_logprobs": 50}},
            "HTTP 400: Requested sample logprobs of 50",
        ),
    ],
    ids=["model", "token", "logprobs"],
)
def test_what_no_row_could_mend_is_told_at_the_start(
    server: Server, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    if "token_variable" not in settings:
        server.needs_vllm()
    elif not server.token:
        pytest.skip("this server takes anybody")
    with pytest.raises(ValueError, match=message), judging(server, monkeypatch, **settings):
        pass
