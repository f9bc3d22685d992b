"""The torch decoder as a GPU would run it, on torch's `meta` device: where tensors lie, how much is launched.

There tensors have shapes, a type and a device, but no numbers; what is read back is zeros here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rs_aligner.generation.network import Network
from rs_aligner.generation.on_torch import TorchDecoder
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.runtime import Runtime
from rs_aligner.rollout import Prompt, Rollout
from tests.drawing import request_of
from tests.generation.test_decoding import SAMPLED, NoText, prompts
from tests.tiny import save_tiny

pytestmark = pytest.mark.timeout(120)
META, CPU = torch.device("meta"), torch.device("cpu")
# Operators that are not views. When this was written, a layer of a Llama takes 19 for a token of all
# rows (36 before), one of a Qwen3 22 (39); with prompts that differ and rows that ended 26 (40) and 29 (43).
BUDGET = 30
CHOICE_BUDGET = 46  # a token, beside the layers: embedding, logits, the choice with every control
NO_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view")


class Launches(TorchDispatchMode):
    """Counts operators that launch a kernel; refuses those whose tensors lie on two devices.

    Attributes:
        counts: by part of the decoder, then by name.
        part: what is being run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, Counter[str]] = {}
        self.part = "around"

    def count(self, name: str) -> None:
        self.counts.setdefault(self.part, Counter())[name] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func._opname
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        devices = {one.device for one in given if one.dim() or one.device == META}
        moves = name in ("_to_copy", "copy_")
        assert moves or len(devices) <= 1, f"{func} is given tensors of {sorted(map(str, devices))}"
        if META in devices and name == "_local_scalar_dense":
            self.count(name)
            return 0
        if moves and META in devices and kwargs.get("device") == CPU:
            found: Any = torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        else:
            found = func(*args, **kwargs)
        made = [one.device for one in tree_leaves(found) if isinstance(one, torch.Tensor)]
        if META in (*devices, *made) and not func.is_view and name not in NO_KERNEL:
            self.count(name)
        return found


class Norms(TorchFunctionMode):
    """Counts a norm as the one kernel that torch has for it on CUDA; on `meta` it is made of several."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.rms_norm:
            return func(*args, **(kwargs or {}))
        self.launches.count("rms_norm")
        part, self.launches.part = self.launches.part, "inside norms"
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.launches.part = part


class Digits(NoText):
    """A tokenizer whose tokens are their numbers."""

    def continuation(self, prompt: Sequence[int], response: Sequence[int], *, raw: bool = False) -> str:
        return super().continuation(prompt, response)

    def token(self, text: str) -> int | None:
        return None


def new_network(folder: Path, rt: Runtime) -> Network:
    """A model's network in bf16, moved to `meta`."""
    arch = read_architecture(folder)
    model = build_model(arch, transformer_config(arch, rt, dtype=torch.bfloat16), rt).eval()
    model.rotary_pos_emb.inv_freq = model.rotary_pos_emb.inv_freq.to(META)
    allowed = torch.arange(arch.vocab_size) != 5
    return Network(model.to(META), arch, rt, allowed)


def run(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[Prompt],
    controls: Controls,
    *,
    limits: dict[tuple[int, int], int] | None = None,
    kv_cache_bytes: int | None = None,
) -> tuple[list[Rollout], Launches, list[int]]:
    """Decode three rollouts a prompt: these, what was launched, the rows of each pass through a layer."""
    launches = Launches()
    passes: list[int] = []
    layer = Network._layer

    def watched(self: Network, number: int, part: Any, hidden: torch.Tensor, *rest: Any) -> torch.Tensor:
        if decoding := hidden.dim() == 2:
            passes.append(len(hidden))
        launches.part = "layers" if decoding else "prefill"
        try:
            return layer(self, number, part, hidden, *rest)
        finally:
            launches.part = "around"

    decoder = TorchDecoder(network, kv_cache_bytes)
    request = request_of(asked, 3, controls)
    with monkeypatch.context() as patch, Norms(launches), launches:
        patch.setattr(Network, "_layer", watched)
        found = list(generate(decoder, Digits(), request, seed=1, limits=limits))
    return found, launches, passes


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_layer_launches_no_more_than_its_budget_for_a_token_of_all_rows(
    one_rank: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    alike: bool,
) -> None:
    """With prompts of one length and all their rollouts, and with shorter ones and some that ended."""
    network = new_network(save_tiny(family, tmp_path), one_rank)
    limits = {(p, n): 5 if alike or p or n == 2 else 1 for p in range(3) for n in range(3)}
    asked = prompts((6, 6, 6) if alike else (3, 11, 7))
    found, launches, passes = run(network, monkeypatch, asked, Controls(max_length=5), limits=limits)
    assert len(found) == 9
    assert passes == [9 if alike else 7] * 4 * 4  # of four layers
    took = sum(launches.counts["layers"].values()) / len(passes)
    assert 10 < took <= BUDGET, launches.counts["layers"]


def test_all_that_decoding_does_keeps_to_the_models_device(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefill, decoding, each control, packing, a cache that grows, a second cohort beside the first."""
    network = new_network(save_tiny("llama", tmp_path, layers=2), one_rank)
    controls = Controls(
        **{name: getattr(SAMPLED, name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")},
        min_length=2,
        max_length=40,
        end_strings=("10",),  # every token can be its last, and none is
    )
    lengths = {(p, n): 40 - 9 * n for p in range(5) for n in range(3)}
    budget = 260 * network.bytes_per_token
    found, launches, passes = run(
        network, monkeypatch, prompts(), controls, limits=lengths, kv_cache_bytes=budget
    )
    assert {(r.group, r.index): len(r.token_ids) for r in found} == lengths
    assert len(set(passes)) > 1  # rows ended and others came
    assert launches.counts["prefill"]
    assert {"sort", "topk", "searchsorted"} <= set(launches.counts["around"])


def test_a_token_is_chosen_with_few_launches(
    one_rank: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = new_network(save_tiny("llama", tmp_path, layers=2), one_rank)
    took = []
    for length in (5, 9):
        _, launches, _ = run(network, monkeypatch, prompts((6, 6)), Controls(max_length=length))
        took.append(sum(launches.counts["around"].values()))
    assert 0 < (took[1] - took[0]) / 4 <= CHOICE_BUDGET


def test_a_tensor_left_on_the_cpu_is_found() -> None:
    with (
        pytest.raises(AssertionError, match=r"add\.Tensor is given tensors of \['cpu', 'meta'\]"),
        Launches(),
    ):
        torch.ones(2, device=META) + torch.ones(2)
