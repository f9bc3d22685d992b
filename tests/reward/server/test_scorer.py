"""Requests become rows and scores become answers, without a server."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from rs_aligner.reward.judges.functions import FunctionJudge
from rs_aligner.reward.server.scorer import TOKEN_HEADER, RequestError, Scorer
from rs_aligner.reward.server.statistics import Statistics, metrics_endpoint, triton_metrics
from rs_aligner.rollout import Score, ScoreFailure
from tests.ports import free_port

pytestmark = pytest.mark.timeout(30)


class Request:
    """As PyTriton hands one over."""

    def __init__(self, token: str | None = None, **data: Any) -> None:
        self.data = data
        self.parameters = {} if token is None else {TOKEN_HEADER: token}


class TokenJudge:
    """Scores a text by its characters, and token ids by their sum."""

    fingerprint = "f"

    def score_texts(self, prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        return [float(len(prompt + response)) for prompt, response in zip(prompts, responses, strict=True)]

    def score_tokens(self, tokens: Any, lengths: Any) -> list[float]:
        return [float(row[:length].sum()) for row, length in zip(tokens, lengths, strict=True)]

    def close(self) -> None: ...


def column(*items: bytes) -> Any:
    array = np.empty((len(items), 1), dtype=object)
    array[:, 0] = items
    return array


def ids(*rows: list[int], lengths: list[int]) -> dict[str, Any]:
    tokens = np.array(rows, dtype=np.int64)
    return {"tokens": tokens, "sequence_lengths": np.array(lengths, dtype=np.int64)[:, None]}


def text_scorer(**settings: Any) -> Scorer:
    def judge(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[Any]:
        return [
            {"reward": len(r), "id": len(json.dumps(row))} for r, row in zip(responses, metadata, strict=True)
        ]

    return Scorer(FunctionJudge(judge, "abc"), 64, **settings)


def listed(answer: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: array[:, 0].tolist() for name, array in answer.items()}


def test_rows_of_several_requests_are_judged_together_and_go_back_to_their_own() -> None:
    sizes = []

    def judge(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        sizes.append(len(responses))
        return [float(r) for r in responses]

    scorer = Scorer(FunctionJudge(judge, "abc"), 64)
    first = Request(prompts=column(b"", b""), responses=column(b"1", b"2"), row_ids=column(b"a", b"b"))
    second = Request(prompts=column(b""), responses=column(b"3"), metadata=column(b"{}"))
    one, two = map(listed, scorer([first, second]))
    assert sizes == [3]
    assert (one["rewards"], one["row_ids"]) == ([1.0, 2.0], [b"a", b"b"])
    assert (two["rewards"], two["row_ids"], two["fingerprint"]) == ([3.0], [b""], [b"abc"])


def test_token_ids_go_to_a_judge_that_takes_them_and_lengths_that_do_not_fit_fail_alone() -> None:
    request = Request(**ids([1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1], lengths=[2, 4, 3, -1]))
    (answer,) = map(listed, Scorer(TokenJudge(), 64)([request]))
    assert [answer["rewards"][i] for i in (0, 2)] == [3.0, 24.0]
    assert np.isnan([answer["rewards"][i] for i in (1, 3)]).all()
    assert b"sequence_lengths is 4: must be in [0, 3]" in answer["errors"][1]
    assert b"sequence_lengths is -1" in answer["errors"][3]


def test_token_ids_are_decoded_for_a_judge_of_texts_and_ids_it_does_not_know_fail_alone() -> None:
    def decode(tokens: list[int]) -> str:
        return "".join({1: "a", 2: "bb"}[token] for token in tokens)

    (answer,) = text_scorer(decode=decode)([Request(**ids([1, 2, 0], [9, 0, 0], lengths=[2, 1]))])
    rewards, errors = listed(answer)["rewards"], listed(answer)["errors"]
    assert rewards[0] == 3.0
    assert errors == [b"", b"the tokens cannot be read: KeyError: 9"]
    with pytest.raises(RequestError, match=r"start it with tokenizer=<folder"):
        text_scorer()([Request(**ids([1], lengths=[1]))])


def test_components_travel_as_json_and_failures_have_none() -> None:
    request = Request(
        prompts=column(b"", b""), responses=column(b"ab", b"\xff"), metadata=column(b'{"a": 1}', b"{}")
    )
    (answer,) = map(listed, text_scorer()([request]))
    assert answer["components"] == [b'{"id": 8.0}', b""]
    assert answer["errors"][1].startswith(b"the response is not UTF-8")


def test_a_request_without_the_token_is_refused_alone_and_with_its_like_altogether() -> None:
    scorer = text_scorer(token="secret")
    good = Request("secret", sentences=column(b"abc"))
    bad = Request("secres", sentences=column(b"abc"))
    none = Request(None, sentences=column(b"abc"))
    answers = [listed(answer) for answer in scorer([bad, good, none])]
    assert [answer["rewards"] for answer in answers[1:2]] == [[3.0]]
    assert b"the access token is wrong" in answers[0]["errors"][0]
    assert b"the access token is missing" in answers[2]["errors"][0]
    assert scorer.statistics.num_refused == 2
    with pytest.raises(RequestError, match="token is wrong"):
        scorer([bad, none])
    assert scorer.statistics.num_refused == 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"prompts": column(b"a")}, "this one has prompts"),
        ({}, "this one has nothing"),
        ({"sentences": column(b"a" * 101)}, r"has 101 bytes, and the server takes 100 \(inference.max_req"),
        ({"sentences": column(b"\xff", b"\xfe")}, "the response is not UTF-8"),
    ],
)
def test_a_request_of_which_nothing_can_be_scored_is_refused_with_the_reason(
    data: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        text_scorer(max_bytes=100)([Request(**data)])


def test_the_judge_is_never_called_from_two_threads_at_once() -> None:
    inside, most = [0], [0]
    lock, gate = threading.Lock(), threading.Event()

    def judge(prompts: list[str], responses: list[str], metadata: list[Any]) -> list[float]:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        gate.wait(0.1)
        with lock:
            inside[0] -= 1
        return [0.0] * len(responses)

    scorer = Scorer(FunctionJudge(judge, "abc"), 64)
    threads = [threading.Thread(target=scorer, args=([Request(sentences=column(b"a"))],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert scorer.statistics.num_rows == 4


def test_figures_are_shown_in_the_format_of_prometheus() -> None:
    import http.client

    statistics = Statistics()
    statistics.count_call([Score(1.0), ScoreFailure("no")], 0.02)
    statistics.count_call([Score(1.0)], 100.0)
    statistics.count_refused(3)
    with metrics_endpoint("127.0.0.1", 0, lambda: statistics.text("abc")) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.request("GET", "/other")
        assert connection.getresponse().status == 404
    for line in (
        'judge_info{fingerprint="abc"} 1',
        "judge_rows_total 3",
        "judge_failed_rows_total 1",
        "judge_refused_requests_total 3",
        'judge_call_seconds_bucket{le="0.01"} 0',
        'judge_call_seconds_bucket{le="0.03"} 1',
        'judge_call_seconds_bucket{le="30.0"} 1',
        'judge_call_seconds_bucket{le="+Inf"} 2',
        "judge_call_seconds_count 2",
    ):
        assert line in lines
    assert triton_metrics(free_port()) == ""
    assert triton_metrics(None) == ""
