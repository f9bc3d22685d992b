"""Ids that may not come: named by a word to servers that bar them, else by all others, never wrongly."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.generation.vllm.completing import Completing, NotOurModel
from rs_aligner.generation.vllm.controls import BARRED, Asked
from rs_aligner.remote.errors import TransportError
from rs_aligner.rollout_server.barred import word_of
from tests.generation.vllm.asked import Texts

pytestmark = pytest.mark.timeout(30)
VOCAB, KNOWN = 151_936, 151_665  # Qwen 2.5's, rounded up, and its tokenizer's


def allowed_of(known: int = KNOWN) -> AllowedTokens:
    mask = torch.arange(VOCAB) < known
    return AllowedTokens(VOCAB, (), 0, None if known == VOCAB else mask)


def word(known: int = KNOWN) -> str | None:
    return word_of(np.arange(VOCAB) < known)


class Link:
    """A server that says of itself what our guard does; None where there is none."""

    weights = None

    def __init__(self, told: dict[str, Any] | None) -> None:
        self.told = told

    def get(self, path: str, timeout: float) -> Any:
        if path == "/rs_aligner/about" and self.told is None:
            raise TransportError("no such route", "refused", 404)
        return self.told if path == "/rs_aligner/about" else {"data": [{"id": "policy"}]}


@pytest.fixture
def completing(monkeypatch: pytest.MonkeyPatch) -> Completing:
    return make(monkeypatch, allowed_of())


def make(patch: pytest.MonkeyPatch, allowed: AllowedTokens) -> Completing:
    patch.setattr(Completing, "_try_token", lambda *_: None)
    handover: Any = SimpleNamespace(admit=lambda *_: None)
    return Completing(allowed, 5, handover)


def try_out(completing: Completing, number: int, told: dict[str, Any] | None) -> None:
    endpoint: Any = SimpleNamespace(url=f"http://server-{number}")
    link: Any = Link(told)
    completing.try_out(endpoint, link, 5)


def test_a_word_is_enough_where_every_server_bars_them(completing: Completing) -> None:
    try_out(completing, 0, {"barred": word()})
    assert completing.barred() == word()
    with pytest.raises(NotOurModel, match=r"it bars no ids: start it with rs-aligner serve-rollouts"):
        try_out(completing, 1, None)  # it joins while others are asked by the word
    try_out(completing, 1, {"barred": word()})
    assert completing.barred() == word()


def test_all_others_are_named_where_one_bars_none(completing: Completing) -> None:
    try_out(completing, 0, {"barred": word()})
    try_out(completing, 1, None)
    assert completing.barred() is None
    try_out(completing, 2, {"barred": None, "lora_rank": 8})
    assert completing.barred() is None


def test_a_server_that_bars_others_has_another_tokenizer(completing: Completing) -> None:
    with pytest.raises(NotOurModel, match="its tokenizer has other ids than the policy's: start it with"):
        try_out(completing, 0, {"barred": word(KNOWN + 1)})


def test_where_all_may_come_nobody_bars_any(monkeypatch: pytest.MonkeyPatch) -> None:
    completing = make(monkeypatch, allowed_of(VOCAB))
    try_out(completing, 0, {"barred": word()})
    try_out(completing, 1, None)
    assert completing.barred() is None


def test_a_request_by_the_word_is_a_megabyte_shorter() -> None:
    controls, ends = Controls(max_length=8), EndStrings(Texts(), ())
    by_word, by_name, whole = (
        len(json.dumps(Asked(controls, ends, allowed, shown).fields()))
        for allowed, shown in ((allowed_of(), word()), (allowed_of(), None), (allowed_of(VOCAB), None))
    )
    assert by_word - whole == len(json.dumps({"vllm_xargs": {BARRED: word()}})) == 57
    assert by_name - whole > 1_000_000
