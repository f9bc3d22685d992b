"""End strings on a GPU: the host looks at tokens chosen there, and rows leave at different times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from rs_aligner.config import GenerationConfig
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.rollout import Prompt, Rollout
from tests.drawing import request_of
from tests.tiny import save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(120)


def test_a_rollout_ends_at_the_first_end_string_and_is_otherwise_as_without(
    tmp_path: Path, rt: Runtime
) -> None:
    folder = save_tiny_with_tokenizer(tmp_path / "model")
    arch, tokenizer = read_architecture(folder), Tokenizer(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.float32), rt).eval()
    huggingface.load_weights(folder, model, arch, rt)
    decoder = new_decoder(model, arch, rt, GenerationConfig(engine="torch"))
    texts = ("Once", "A", "The sea is")
    asked = [Prompt(str(i), text, tuple(tokenizer.encode(text)), position=i) for i, text in enumerate(texts)]

    def draw(*ends: str) -> dict[tuple[int, int], Rollout]:
        controls = Controls(max_length=40, end_strings=ends)
        found = generate(decoder, tokenizer, request_of(asked, 6, controls), seed=1)
        return {(one.group, one.index): one for one in found}

    plain = draw()
    letters = Counter(char for one in plain.values() for char in set(one.text) if char.isascii())
    end = next(char for char, count in letters.most_common() if count <= 12 and char.isalpha())
    cut = draw(end)
    assert cut.keys() == plain.keys()
    stopped = {place for place, one in plain.items() if end in one.text}
    assert 3 <= len(stopped) < len(plain)
    for place, one in cut.items():
        whole = plain[place]
        assert one.token_ids == whole.token_ids[: len(one.token_ids)]
        assert one.text == whole.text.partition(end)[0]
        if place in stopped:
            assert one.finish_reason == "stop"
            assert end in tokenizer.decode(one.token_ids[-1:])
        else:
            assert len(one.token_ids) == len(whole.token_ids)
