"""The decoders that `generation.py` compares: callables that decode a workload and return how many tokens."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from rs_aligner.config import GenerationConfig, LengthParams, SamplingParams
from rs_aligner.generation import native
from rs_aligner.generation.engines import new_decoder
from rs_aligner.generation.native_network import Session, TokenBatch
from rs_aligner.generation.network import Network, rotate
from rs_aligner.generation.on_kernels import KernelDecoder
from rs_aligner.generation.waves import generate
from rs_aligner.model import huggingface, runtime
from rs_aligner.model.build import build_model, transformer_config
from rs_aligner.model.compiled import address
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.rollout import Prompt
from rs_aligner.sample_request import SampleRequest


@dataclass
class Workload:
    """Prompts, rollouts and where they end."""

    name: str
    folder: Path
    prompts: list[tuple[int, ...]]
    num_rollouts: int
    max_length: int
    eos: int | None  # None: nothing ends before its length
    lengths: list[list[int]] | None = None  # [P][N], where each rollout ends; None: at max_length or eos

    def length(self, prompt: int, rollout: int) -> int:
        return self.lengths[prompt][rollout] if self.lengths else self.max_length


class NoText:
    """A tokenizer for models without one."""

    def __init__(self, eos: int | None) -> None:
        self.eos_ids = () if eos is None else (eos,)

    def continuation(self, prompt: Any, response: Any) -> str:
        return ""


class Ours:
    """The decoder of this project, on a Megatron policy."""

    def __init__(self, work: Workload, rt: runtime.Runtime, *, compiled: bool = True) -> None:
        arch = read_architecture(work.folder)
        config = transformer_config(arch, rt, dtype=torch.float32)
        self.model = build_model(arch, config, rt)
        huggingface.load_weights(work.folder, self.model, arch, rt)
        self.decoder = new_decoder(
            self.model, arch, rt, GenerationConfig(engine="kernels" if compiled else "torch")
        )
        self.work = work

    def __call__(self) -> int:
        work = self.work
        prompts = [Prompt(str(i), "", p, position=i) for i, p in enumerate(work.prompts)]
        pairs = ((p, n) for p in range(len(prompts)) for n in range(work.num_rollouts))
        limits = {pair: work.length(*pair) for pair in pairs}
        lengths = LengthParams(max_length=work.max_length, min_length=0)
        asked = SampleRequest(prompts, work.num_rollouts, SamplingParams(), lengths, step=1)
        stream = generate(self.decoder, NoText(work.eos), asked, seed=1, limits=limits)
        return sum(len(rollout.token_ids) for rollout in stream)


class Limit:
    """Our decoder's products and attention calls, on the same shapes, weights and pages, back to back."""

    def __init__(self, ours: Ours) -> None:
        assert isinstance(ours.decoder, KernelDecoder), "the limit is that of the kernels"
        network = ours.decoder.network
        heads = network.arch.num_heads // network.arch.num_kv_heads
        library, _, _ = native.build(Path(__file__).with_name("limit.c"), network.arch.head_dim, heads)
        self.run = ctypes.CDLL(str(library)).limit_run
        self.run.restype = None
        self.calls: list[tuple[Session, native.Batch, int, Any]] = []
        run = Session.run

        def record(session: Session, tokens: Any, batch: TokenBatch, wanted: Any = None) -> Any:
            found = run(session, tokens, batch, wanted)
            positions = batch.positions.copy()
            given = native.Batch.from_buffer_copy(batch.native)
            given.positions = address(positions)
            count = len(tokens) if wanted is None else len(wanted)
            self.calls.append((session, given, count, (batch, positions)))  # the last keep memory alive
            return found

        Session.run = record  # type: ignore[method-assign]  # watched, and put back
        try:
            ours()
        finally:
            Session.run = run  # type: ignore[method-assign]  # put back

    def __call__(self) -> int:
        long, pointer = ctypes.c_long, ctypes.c_void_p
        for session, batch, wanted, _ in self.calls:
            head = session.network.model.embedding.word_embeddings.weight
            self.run(
                *(session._layers, long(len(session._layers)), ctypes.byref(session._model)),
                *(ctypes.byref(batch), pointer(address(head)), long(len(head))),
                *(pointer(address(session._buffers["logits"])), long(wanted)),
            )
        return 0


class TorchCompiled:
    """Our decoder on torch, with what stands around attention through `torch.compile`."""

    def __init__(self, work: Workload, rt: runtime.Runtime) -> None:
        self.ours = Ours(work, rt, compiled=False)
        self.before = torch.compile(_before_attention, dynamic=True)
        self.after = torch.compile(_after_attention, dynamic=True)

    def __call__(self) -> int:
        side = self

        def layer_pass(
            network: Network, number: int, layer: Any, hidden: Any, cos: Any, sin: Any, attend: Any
        ) -> Any:
            attention, mlp = layer.self_attention, layer.mlp
            first, second = layer.input_layernorm, layer.pre_mlp_layernorm
            heads = (network.num_kv_heads, network.group + 2, network.arch.head_dim)
            qkv = side.before(hidden, first.weight, first.eps, attention.linear_qkv.weight, cos, sin, heads)
            mixed = attend(number, qkv).reshape(*hidden.shape[:-1], -1)
            weights = (attention.linear_proj.weight, mlp.linear_fc1.weight, mlp.linear_fc2.weight)
            return side.after(mixed, hidden, second.weight, second.eps, *weights)

        usual = Network._layer
        Network._layer = layer_pass  # type: ignore[method-assign]  # timed, and put back
        try:
            return self.ours()
        finally:
            Network._layer = usual  # type: ignore[method-assign]  # put back


def _before_attention(
    hidden: Any, norm: Any, eps: float, weight: Any, cos: Any, sin: Any, heads: tuple[int, int, int]
) -> Any:
    qkv = functional.linear(functional.rms_norm(hidden, norm.shape, norm, eps), weight).unflatten(-1, heads)
    rotate(qkv, heads[1] - 1, cos, sin)
    return qkv


def _after_attention(mixed: Any, hidden: Any, norm: Any, eps: float, proj: Any, fc1: Any, fc2: Any) -> Any:
    hidden = functional.linear(mixed, proj) + hidden
    gate, up = functional.linear(functional.rms_norm(hidden, norm.shape, norm, eps), fc1).chunk(2, -1)
    return functional.linear(functional.silu(gate) * up, fc2) + hidden


class _EndAtLength(transformers.StoppingCriteria):  # type: ignore[misc]  # its base has no types
    def __init__(self, ends: torch.Tensor) -> None:
        self.ends = ends

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.ends


class HuggingFace:
    """`generate` with `num_return_sequences`."""

    def __init__(self, work: Workload) -> None:
        self.work = work
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            work.folder, dtype=torch.float32
        ).eval()
        self.model.generation_config.eos_token_id = self.model.config.eos_token_id = work.eos
        width = max(map(len, work.prompts))
        self.ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in work.prompts])
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in work.prompts])
        pairs = [(p, n) for p in range(len(work.prompts)) for n in range(work.num_rollouts)]
        self.ends = torch.tensor([width + work.length(*pair) for pair in pairs])

    @torch.no_grad()
    def __call__(self) -> int:
        torch.manual_seed(1)
        work = self.work
        out = self.model.generate(
            self.ids,
            attention_mask=self.mask,
            do_sample=True,
            top_k=0,
            num_return_sequences=work.num_rollouts,
            max_new_tokens=work.max_length,
            pad_token_id=0,
            stopping_criteria=[_EndAtLength(self.ends)] if work.lengths else [],
        )
        return _count(out[:, self.ids.shape[1] :], work)


class HuggingFaceForked(HuggingFace):
    """The cache filled once per prompt and repeated for the rollouts; all rows to the end."""

    @torch.no_grad()
    def __call__(self) -> int:
        torch.manual_seed(1)
        work, n = self.work, self.work.num_rollouts
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        out = self.model(self.ids, attention_mask=self.mask, position_ids=positions, logits_to_keep=1)
        cache = out.past_key_values
        cache.batch_repeat_interleave(n)
        logits = out.logits[:, -1].repeat_interleave(n, 0)
        mask, position = self.mask.repeat_interleave(n, 0), positions[:, -1:].repeat_interleave(n, 0)
        done = torch.zeros(len(mask), dtype=torch.bool)
        found = []
        for place in range(work.max_length):
            token = torch.multinomial(logits.softmax(-1), 1)
            found.append(token)
            done |= (token[:, 0] == work.eos) if work.eos is not None else False
            if done.all() or place == work.max_length - 1:
                break
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            position = position + 1
            logits = self.model(
                token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
            ).logits[:, -1]
        return _count(torch.cat(found, 1), work)


def _count(tokens: torch.Tensor, work: Workload) -> int:
    """Tokens up to and with each row's end."""
    if work.lengths:
        return sum(map(sum, work.lengths))
    if work.eos is None:
        return tokens.numel()
    ended = (tokens == work.eos).int().cumsum(-1)
    return int(((ended - (tokens == work.eos).int()) == 0).sum())


class MegatronStatic:
    """The ancestor's order: a full pass for each rollout index through Megatron's forward with its cache."""

    def __init__(self, work: Workload, rt: runtime.Runtime) -> None:
        from megatron.core.models.gpt import GPTModel
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

        self.work = work
        arch = read_architecture(work.folder)
        config = transformer_config(arch, rt, dtype=torch.float32)
        config.use_te_activation_func = False  # Megatron's own layers have the config's
        self.model = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=arch.vocab_size,
            max_sequence_length=arch.max_positions,
            share_embeddings_and_output_weights=arch.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=arch.rope.theta,
        ).eval()
        huggingface.load_weights(work.folder, self.model, arch, rt)

    @torch.no_grad()
    def __call__(self) -> int:
        torch.manual_seed(1)
        return sum(self._one_pass(n) for n in range(self.work.num_rollouts))

    def _one_pass(self, index: int) -> int:
        from megatron.core.inference.contexts import StaticInferenceContext

        work = self.work
        width = max(map(len, work.prompts))
        tokens = torch.tensor([list(p) + [0] * (width - len(p)) for p in work.prompts])  # padded behind
        context = StaticInferenceContext(len(tokens), width + work.max_length)
        logits = self._forward(tokens, 0, context)
        done = torch.zeros(len(tokens), dtype=torch.bool)
        ends = torch.tensor([work.length(p, index) for p in range(len(tokens))])
        found = []
        for place in range(work.max_length):
            token = torch.multinomial(logits.softmax(-1), 1)
            found.append(token)
            done |= (place + 1 >= ends) | ((token[:, 0] == work.eos) if work.eos is not None else False)
            if done.all():
                break
            logits = self._forward(token, width + place, context)
        if work.lengths:
            return int(ends.sum())
        return _count(torch.cat(found, 1), work)

    def _forward(self, tokens: torch.Tensor, start: int, context: Any) -> torch.Tensor:
        positions = torch.arange(start, start + tokens.shape[1]).expand_as(tokens)
        width = tokens.shape[1]
        mask = torch.triu(torch.ones(width, width, dtype=torch.bool), 1)[None, None] if width > 1 else None
        logits = self.model(tokens, positions, mask, inference_context=context, runtime_gather_output=True)
        context.increment_sequence_len_offset(width)
        return logits[:, -1]
