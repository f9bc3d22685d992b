"""How a rollout ends, and what its text is: end tokens, end strings, least and most length.

The network here is a table: each token is followed by a known one. So what a rollout says is known, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from rs_aligner.generation.cache import PromptCache
from rs_aligner.generation.network import Attend, Network
from rs_aligner.generation.on_torch import TorchDecoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import unknown_special
from rs_aligner.generation.waves import generate
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.rollout import Prompt, Rollout
from tests.chat_models import SPECIAL, save_tokenizer
from tests.drawing import request_of

EOS = 0


class Table(Network):
    """A network that says the pieces one after the other, again and again, whatever came before."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.vocabulary = [b"</s>", b"prompt: ", *pieces]
        self.arch = cast(Any, SimpleNamespace(vocab_size=len(self.vocabulary)))
        self.device = torch.device("cpu")
        self.runtime = cast(Any, SimpleNamespace(is_last_stage=True, from_chooser=lambda tensor: tensor))
        self.prefilled: list[list[int]] = []

    def prefill(self, tokens: torch.Tensor, lengths: list[int]) -> tuple[torch.Tensor, PromptCache]:
        self.prefilled += tokens.tolist()
        empty = torch.zeros(2, 1, len(tokens), tokens.shape[1], 1)
        last = tokens[torch.arange(len(tokens)), torch.tensor(lengths) - 1]
        return self._after(last), PromptCache([empty], lengths)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        return self._after(tokens)

    def _after(self, tokens: torch.Tensor) -> torch.Tensor:
        size = len(self.vocabulary)
        following = (tokens + 1).where(tokens + 1 < size, 2)
        return torch.nn.functional.one_hot(following, size).float() * 50


class Ends(Table):
    """Says one piece and then wants to end, always; the piece is its second choice."""

    def _after(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(tokens), len(self.vocabulary))
        logits[:, 2] = 5.0
        logits[tokens == 2, EOS] = 9.0
        return logits


class Bytes:
    """A tokenizer whose tokens are bytes, as in byte-level BPE: a character may span several."""

    eos_ids: tuple[int, ...] = (EOS,)

    def __init__(self, vocabulary: Sequence[bytes]) -> None:
        self.vocabulary = vocabulary

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.vocabulary[i] for i in ids if i != EOS).decode(errors="replace")

    def token(self, text: str) -> int | None:
        return None

    def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
        before, whole = self.decode(prompt), self.decode((*prompt, *response))
        return whole[len(before) :] if whole.startswith(before) else self.decode(response)


def say(pieces: Sequence[bytes], network: type[Table] = Table, **controls: Any) -> Rollout:
    """The one rollout of a network that says these pieces."""
    table = network(pieces)
    (rollout,) = generate(
        TorchDecoder(table),
        Bytes(table.vocabulary),
        request_of(
            [Prompt("p", "prompt: ", (1,))], 1, Controls(greedy=True, **{"max_length": 12, **controls})
        ),
        seed=1,
    )
    return rollout


HELLO = [b"He", b"llo", b" wor", b"ld", b"!"]


def test_the_most_tokens_end_a_rollout_as_length() -> None:
    rollout = say(HELLO, max_length=4)
    assert (rollout.token_ids, rollout.text, rollout.finish_reason) == ((2, 3, 4, 5), "Hello world", "length")


def test_an_end_token_stays_in_the_tokens_and_out_of_the_text() -> None:
    rollout = say([b"word"], Ends)
    assert (rollout.token_ids, rollout.text, rollout.finish_reason) == ((2, EOS), "word", "stop")


def test_an_end_token_in_the_last_place_is_a_stop() -> None:
    assert say([b"word"], Ends, max_length=2).finish_reason == "stop"


def test_no_end_token_comes_before_the_least_length() -> None:
    rollout = say([b"w"], Ends, min_length=5)
    assert rollout.token_ids == (2, 2, 2, 2, 2, EOS)
    assert rollout.text == "wwwww"


@pytest.mark.parametrize("end", ["o wor", "lo w", " w"])
def test_an_end_string_may_span_tokens_and_is_cut_from_the_text_only(end: str) -> None:
    rollout = say(HELLO, end_strings=(end,))
    assert rollout.token_ids == (2, 3, 4)
    assert rollout.finish_reason == "stop"
    assert rollout.text == "Hello world!"[: "Hello world!".index(end)]
    assert len(rollout.log_probs) == 3


@pytest.mark.parametrize("ends", [("!", "ello"), ("ello", "!"), ("llo", "ello"), ("lo", "ello", "zzz")])
def test_of_several_end_strings_the_first_in_the_text_counts(ends: tuple[str, ...]) -> None:
    rollout = say(HELLO, end_strings=ends)
    assert rollout.token_ids == (2, 3)
    assert rollout.text == "H"


@pytest.mark.parametrize("end", ["He", "H"])
def test_a_response_may_begin_with_an_end_string(end: str) -> None:
    rollout = say(HELLO, end_strings=(end,))
    assert (rollout.token_ids, rollout.text, rollout.finish_reason) == ((2,), "", "stop")


def test_an_end_string_that_never_comes_changes_nothing() -> None:
    assert say(HELLO, end_strings=("wr",)) == say(HELLO)


def test_the_prompts_text_is_no_part_of_an_end_string() -> None:
    rollout = say(HELLO, end_strings=(": He", "prompt"), max_length=5)
    assert (rollout.text, rollout.finish_reason) == ("Hello world!", "length")


def test_an_end_string_that_ends_before_the_least_length_is_text_like_any_other() -> None:
    """It is said again from the sixth token on, and then ends the rollout."""
    rollout = say(HELLO, end_strings=("llo",), min_length=4)
    assert rollout.token_ids == (2, 3, 4, 5, 6, 2, 3)
    assert rollout.text == "Hello world!He"


def test_an_end_string_may_end_exactly_at_the_least_length() -> None:
    rollout = say(HELLO, end_strings=("llo", "wor"), min_length=3)
    assert (rollout.token_ids, rollout.text) == ((2, 3, 4), "Hello ")


def test_an_end_string_that_was_passed_over_stays_in_the_text() -> None:
    rollout = say(HELLO, end_strings=("llo",), min_length=4, max_length=5)
    assert (rollout.text, rollout.finish_reason) == ("Hello world!", "length")


def test_an_end_string_in_the_last_place_of_a_row_without_room_for_the_least_length_is_text() -> None:
    table = Table(HELLO)
    controls = Controls(greedy=True, end_strings=("llo",), min_length=4, max_length=12)
    asked = request_of([Prompt("p", "prompt: ", (1,))], 1, controls)
    (cut,) = generate(TorchDecoder(table), Bytes(table.vocabulary), asked, seed=1, limits={(0, 0): 2})
    assert (cut.token_ids, cut.text, cut.finish_reason) == ((2, 3), "Hello", "length")


def test_characters_of_many_tokens_are_found_whole() -> None:
    """Four characters of four bytes each, a byte a token."""
    end = "😀😃😄😁"
    said = ("ab" + end).encode()
    rollout = say([bytes([b]) for b in said], end_strings=(end,), max_length=40)
    assert len(rollout.token_ids) == len(said) == 18
    assert (rollout.text, rollout.finish_reason) == ("ab", "stop")


def test_a_long_rollout_finds_its_end_string() -> None:
    pieces = [bytes([97 + i % 25]) for i in range(300)]
    pieces[250:253] = [b"<", b"end", b">"]
    rollout = say(pieces, end_strings=("<end>",), max_length=400)
    assert len(rollout.token_ids) == 253
    assert len(rollout.text) == 250


def test_every_prompt_is_prefilled_once_whatever_the_number_of_rollouts() -> None:
    table = Table(HELLO)
    prompts = [Prompt(str(i), "", (1,) * (i + 1)) for i in range(5)]
    asked = request_of(prompts, 7, Controls(max_length=3), wave_size=2)
    rollouts = list(generate(TorchDecoder(table), Bytes(table.vocabulary), asked, seed=1))
    assert len(rollouts) == 35
    assert sorted(sum(tokens) for tokens in table.prefilled) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("wave_size", [None, 3])
def test_a_replica_without_a_prompt_gives_no_rollout(wave_size: int | None) -> None:
    table = Table(HELLO)
    asked = request_of([], 4, Controls(max_length=3), wave_size=wave_size)
    assert list(generate(TorchDecoder(table), Bytes(table.vocabulary), asked, seed=1)) == []


# Special tokens among the end strings, on a real tokenizer


class Script(Table):
    """Says these ids one after the other."""

    def __init__(self, ids: Sequence[int], vocab_size: int) -> None:
        super().__init__([])
        self.arch = cast(Any, SimpleNamespace(vocab_size=vocab_size))
        self.ids = list(ids)

    def _after(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([self.ids.pop(0)]), self.arch.vocab_size).float() * 50


def say_text(tokenizer: Tokenizer, said: str, *ids: int, **controls: Any) -> Rollout:
    """The rollout of a network that says the tokens of a text, special ones too, and then these ids."""
    spoken = [*tokenizer.encode(said, is_chat=True), *ids]
    vocab_size = 300
    (rollout,) = generate(
        TorchDecoder(Script([*spoken, *[50] * 99], vocab_size)),
        tokenizer,
        request_of([Prompt("p", "Q", (51,))], 1, Controls(greedy=True, **{"max_length": 60, **controls})),
        seed=1,
    )
    return rollout


@pytest.fixture
def chatml(tmp_path: Path) -> Tokenizer:
    """Ends with `<|endoftext|>` (0), and with `<|im_end|>` (2) if it is told so; has no chat template."""
    return Tokenizer(save_tokenizer(tmp_path, SPECIAL["think"], eos="<|endoftext|>"))


def test_a_special_token_among_the_end_strings_ends_a_response_by_its_id(chatml: Tokenizer) -> None:
    rollout = say_text(chatml, "four<|im_end|>and more", end_strings=("<|im_end|>",))
    assert (rollout.text, rollout.finish_reason) == ("four", "stop")
    assert rollout.token_ids[-1] == 2
    without = say_text(chatml, "four<|im_end|>and more<|endoftext|>")
    assert without.text == "fourand more"


def test_nemo_aligners_own_end_strings_end_a_response(chatml: Tokenizer) -> None:
    nemo = ("<|endoftext|>", "<extra_id_1>")
    assert say_text(chatml, "four<|endoftext|>", end_strings=nemo).text == "four"
    spelled = say_text(chatml, "four<extra_id_1>", end_strings=nemo)
    assert (spelled.text, spelled.finish_reason) == ("four", "stop")
    assert unknown_special(chatml, (*nemo, "</answer>", "\n")) == ["<extra_id_1>"]


def test_a_special_token_inside_a_longer_end_string_counts(chatml: Tokenizer) -> None:
    end = "</a><|im_end|>\n"
    rollout = say_text(chatml, "4</a>5<|im_end|>6</a><|im_end|>\nmore", end_strings=(end,))
    assert (rollout.text, rollout.finish_reason) == ("4</a>56", "stop")
    assert chatml.decode(rollout.token_ids, raw=True).endswith(end)


def test_an_end_string_may_be_completed_by_the_end_token(chatml: Tokenizer) -> None:
    assert say_text(chatml, "4</a><|endoftext|>", end_strings=("</a><|endoftext|>",)).text == "4"


def test_an_end_string_that_begins_within_a_shown_token_leaves_the_rest_of_it(chatml: Tokenizer) -> None:
    chatml.configure(judge_special_tokens=["<think>"])
    assert say_text(chatml, "4<think>5", end_strings=("nk>5",)).text == "4<thi"
    chatml.configure()
    assert say_text(chatml, "4<think>5", end_strings=("nk>5",)).text == "4"


def test_an_end_string_that_is_a_token_does_not_come_before_the_least_length(
    chatml: Tokenizer,
) -> None:
    """As an end token does not: it is not sampled, and so does not stay in the text."""
    rollout = say_text(chatml, "<|im_end|><|im_end|>ab<|im_end|>", end_strings=("<|im_end|>",), min_length=3)
    assert 2 not in rollout.token_ids[:2]
    assert rollout.token_ids[-1] == 2
    assert len(rollout.token_ids) >= 3


def test_an_end_string_that_was_passed_over_behind_a_token_that_is_not_shown_stays(chatml: Tokenizer) -> None:
    rollout = say_text(chatml, "<|im_end|>xyzx", end_strings=("x",), min_length=4)
    assert (rollout.text, rollout.finish_reason) == ("xyz", "stop")


def test_an_end_token_that_is_no_special_one_is_no_part_of_the_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_tokenizer(tmp_path, SPECIAL["plain"], eos="</s>", named=[5, 1]))
    mark = tokenizer.decode([5])
    rollout = say_text(tokenizer, "four", 5)
    assert (rollout.token_ids[-1], rollout.text) == (5, "four")
    assert mark not in rollout.text


# Special tokens in a response (C3)


def test_a_response_has_no_special_tokens_unless_they_are_to_be_shown(
    chatml: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    said = "<think>\nok</think>4<|im_start|><|endoftext|>"
    with caplog.at_level("WARNING", "rs_aligner"):
        assert say_text(chatml, said).text == "\nok4"
        assert say_text(chatml, said).text == "\nok4"
    (line,) = caplog.messages
    assert "<think> </think> <|im_start|>" in line
    assert "model.data.judge_special_tokens=true" in line
    chatml.configure(judge_special_tokens=True)
    assert say_text(chatml, said).text == "<think>\nok</think>4<|im_start|>"
    chatml.configure(judge_special_tokens=["<think>", "</think>"])
    assert say_text(chatml, said).text == "<think>\nok</think>4"
    with pytest.raises(ValueError, match=r"judge_special_tokens has '<thnk>', .* <think>"):
        chatml.configure(judge_special_tokens=["<thnk>"])


def test_the_end_that_is_left_out_anyway_is_not_warned_of(
    chatml: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "rs_aligner"):
        say_text(chatml, "4<|endoftext|>")
        say_text(chatml, "4<|im_end|>", end_strings=("<|im_end|>",))
        say_text(chatml, "4</a><|im_end|>", end_strings=("</a><|im_end|>",))
    assert caplog.messages == []
