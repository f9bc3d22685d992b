"""What vLLM's servers are asked, by the real decoder, in the world of `leaf_world.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.address import Address
from rs_aligner.generation import on_vllm
from rs_aligner.generation.decoder import Exports, Offer, Wave
from rs_aligner.generation.rows import RolloutRow
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.text import EndStrings
from rs_aligner.generation.vllm.handover import Handover
from rs_aligner.remote.errors import TransportError
from rs_aligner.rollout import Prompt
from rs_aligner.selection.filters import VersionLag
from tests.config.leaf_judges import Notes


class _NoText:
    """A tokenizer that is not asked for texts."""

    eos_ids = ()


def set_up_engine(patch: pytest.MonkeyPatch, notes: Notes) -> Callable[[Offer], None]:
    """Servers that say one token; what is returned asks them for a rollout, as the config says."""

    class Connection:
        def __init__(self, address: Address, token: str | None = None, *, authority: str | None) -> None:
            notes.add("servers", str(address), token, authority)
            self.weights = None

        def get(self, path: str, timeout: float) -> Any:
            return {"data": [{"id": "policy"}]} if path == "/v1/models" else None

        @contextmanager
        def stream(self, path: str, timeout: float, body: Mapping[str, Any]) -> Iterator[Iterator[Any]]:
            notes.add("requests", path, timeout)
            if str(vocab_size) in body.get("logit_bias", {}):
                raise TransportError("no such id", "refused", 400)
            tokens = body.get("allowed_token_ids", [5])[-1:]
            choice = {"token_ids": tokens, "logprobs": {"token_logprobs": [-1.0]}, "finish_reason": "length"}
            yield iter([{"choices": [{"index": 0, **choice}]}])

        def abort(self) -> None: ...

    vocab_size = 0

    def sample(offer: Offer) -> None:
        nonlocal vocab_size
        vocab_size = offer.arch.vocab_size
        exports = Exports(Path("weights"), lambda folder: None)
        decoder = on_vllm.VLLM.new(replace(offer, exports=exports))
        end_strings = EndStrings(_NoText(), ())  # type: ignore[arg-type]  # no text is asked for
        row = RolloutRow(0, 0, 1, Prompt("p", "", (5,)), limit=1)
        notes.add("versions", [decoder.prepare(0), decoder.prepare(1)])
        assert len(list(decoder.decode(Wave([row], Controls(max_length=1), end_strings)))) == 1
        decoder.close(is_over=True)

    patch.setattr(on_vllm, "VllmConnection", Connection)
    # There are no weights to hand over.
    patch.setattr(Handover, "begin", lambda *_: None)
    patch.setattr(Handover, "write", lambda _, version, most: version)

    def bounded(selector: VersionLag, most: int) -> None:
        notes.add("lag", most)
        selector.most = most

    patch.setattr(VersionLag, "__init__", bounded)
    return sample
