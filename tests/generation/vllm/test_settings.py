"""Servers that cannot be asked for the policy's rollouts are told at once, in one line that says what to do.

The servers are stand-ins (`stand_in.py`), held to a real one in `test_contract.py`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from rs_aligner.generation.decoder import CannotDecode, Wave
from tests.generation.vllm.asked import CONTROLS, VOCAB, assert_whole, decoder_for, pair, sample
from tests.generation.vllm.stand_in import StandIn, stand_in
from tests.ports import free_port

pytestmark = pytest.mark.timeout(120)


def refusal(*servers: StandIn | str, **settings: Any) -> str:
    with pytest.raises(CannotDecode) as caught:
        decoder_for(*servers, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_server_is_told_within_the_time_that_it_has() -> None:
    told = refusal(f"127.0.0.1:{free_port()}", startup_timeout=0.5)
    assert told.startswith("no vLLM server is ready after 0.5 s: http://127.0.0.1:")
    assert told.endswith(
        "Connection refused; start one there (rs-aligner serve-rollouts), correct generation.endpoints, or "
        "raise generation.servers.startup_timeout if it is still starting"
    )


@pytest.mark.parametrize("vocab_size", [VOCAB - 1, VOCAB + 1])
def test_another_models_vocabulary_is_told_at_once(opened: ExitStack, vocab_size: int) -> None:
    server = opened.enter_context(stand_in(vocab_size))
    told = refusal(server, startup_timeout=60)
    assert told.startswith(f"{server.url}: its model has another vocabulary")
    assert "the policy has 100 ids: serve the model that is trained" in told


def test_log_probabilities_behind_the_filters_are_told_at_once(opened: ExitStack) -> None:
    server = opened.enter_context(stand_in())
    server.processes_log_probs = True
    assert "start it with --logprobs-mode raw_logprobs" in refusal(server, startup_timeout=60)


def test_a_token_is_sent_and_a_wrong_one_told_with_its_keys(
    opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = opened.enter_context(stand_in(token="sekret"))
    monkeypatch.setenv("RS_ALIGNER_ROLLOUTS_TOKEN", "wrong")
    told = refusal(server, startup_timeout=60)
    assert "HTTP 401: Unauthorized; set generation.servers.token_file, or the variable" in told
    assert "RS_ALIGNER_ROLLOUTS_TOKEN" in told
    monkeypatch.setenv("RS_ALIGNER_ROLLOUTS_TOKEN", "sekret")
    decoder = decoder_for(server)
    opened.callback(decoder.close)
    assert_whole(sample(decoder))


def test_a_server_of_something_else_is_told(opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    server = opened.enter_context(stand_in())
    monkeypatch.setattr(StandIn, "_answer", lambda *_: {"choices": []})
    assert f"{server.url} is no server of vLLM: the answer has 0 choices" in refusal(server)


def test_the_decoder_says_where_it_asks(opened: ExitStack) -> None:
    first, second, decoder = pair(opened)
    assert decoder.description == f"vLLM at {first.url}, {second.url}"
    assert Wave([], CONTROLS, None).at_once is None  # type: ignore[arg-type]  # nothing ends here
