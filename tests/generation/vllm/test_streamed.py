"""A real vLLM's answer, read as it comes: who has ended is handed on while others are sampled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.remote.transport import Conversation
from rs_aligner.rollout import Prompt
from tests.drawing import request_of
from tests.generation.vllm.asked import Texts, decoder_for
from tests.vllm_server import STORIES, Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ENDED = b'"finish_reason":"'


def test_the_rollout_that_ends_first_is_handed_on_before_the_other_one_has_come(
    stories_server: Running, test_data: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(test_data / STORIES)
    prompt = Prompt("0", "", tuple(tokenizer.encode("Once upon a time, there was a")), position=0)
    decoder = decoder_for(stories_server.url, vocab_size=512, startup_timeout=120)
    opened.callback(decoder.close)
    pieces, is_handed_on = Conversation._pieces, threading.Event()
    ends: list[bool] = []

    def held(*args: Any) -> Iterator[bytes]:
        """Behind the first end, nothing is read until its rollout is there."""
        for piece in pieces(*args):
            assert piece.count(ENDED) < 2
            ends.extend([is_handed_on.is_set()] * piece.count(ENDED))
            yield piece
            assert not ends or is_handed_on.wait(30), "it waits for the others"

    monkeypatch.setattr(Conversation, "_pieces", held)
    request = request_of([prompt], 2, Controls(max_length=200, temperature=1.5))
    found = generate(decoder, Texts(tokenizer.encode(".")[-1]), request, seed=1)
    first = next(found)
    is_handed_on.set()
    [second] = found
    assert sorted([first.index, second.index]) == [0, 1]
    assert len(first.token_ids) < len(second.token_ids)
    assert ends == [False, True]
