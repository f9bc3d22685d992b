"""How fast the decoder is: side by side with what a user would pick instead, and with the limit.

    python benchmarks/generation.py                  all workloads and opponents, about an hour on one core
    python benchmarks/generation.py --quick          smaller workloads, some minutes

Every side decodes the same prompts with the same weights on one thread; sides alternate within a run, and
what counts is the ratio of CPU seconds (user and system), medians over the repeats. The opponents:

    hf         Hugging Face `generate(num_return_sequences=16)`
    hf_forked  the same model, its cache filled once per prompt and repeated, all rows to the end
    megatron   a pass per rollout index through Megatron's forward with its static cache (ancestor's order)
    limit      the matrix products and attention calls of our decoder, on the same shapes, back to back
    torch      our decoder without its compiled kernels

Results go to `benchmarks/results/generation.json` beside a table on the screen.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import psutil
import torch
import transformers

from rs_aligner.generation import native
from rs_aligner.generation.native_network import NativeNetwork, Session, TokenBatch
from rs_aligner.generation.sampling import Controls
from rs_aligner.generation.waves import generate, new_network
from rs_aligner.policy import huggingface, runtime
from rs_aligner.policy.architecture import read_architecture
from rs_aligner.policy.model import build_model, transformer_config
from rs_aligner.rollout import Prompt

DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data"))
MEDIUM = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


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


def workloads(quick: bool, scratch: Path) -> list[Workload]:
    """The four workloads; `quick` has fewer rollouts and tokens."""
    rng = random.Random(7)
    stories = DATA / "stories260k"
    num_rollouts = 4 if quick else 16
    found = []
    if stories.is_dir():
        tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
        lines = (DATA / "tinystories" / "prompts_train.jsonl").read_text().splitlines()
        prompts = [tuple(tokenizer(json.loads(line)["text"])["input_ids"]) for line in lines[:32]]
        found.append(Workload("a", stories, prompts, num_rollouts, 64 if quick else 256, eos=1))
    else:
        print(f"workload a needs {stories}, which is not there: left out", file=sys.stderr)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**MEDIUM)).save_pretrained(scratch)

    def prompts_of(length: int) -> list[tuple[int, ...]]:
        return [tuple(rng.randrange(3, MEDIUM["vocab_size"]) for _ in range(length)) for _ in range(8)]

    longest = 64 if quick else 256
    tail = [[min(longest, 8 + int(rng.expovariate(1 / 40))) for _ in range(num_rollouts)] for _ in range(8)]
    tail[0][0] = longest
    found += [
        Workload("b", scratch, prompts_of(128), num_rollouts, 16 if quick else 64, None),
        Workload("c", scratch, prompts_of(128), num_rollouts, longest, None, tail),
        Workload("d", scratch, prompts_of(512), num_rollouts, 8 if quick else 32, None),
    ]
    return found


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
        self.network, self.work = new_network(self.model, arch, rt, compiled=compiled), work

    def __call__(self) -> int:
        work = self.work
        prompts = [(i, Prompt(str(i), "", p, position=i)) for i, p in enumerate(work.prompts)]
        pairs = ((p, n) for p in range(len(prompts)) for n in range(work.num_rollouts))
        limits = {pair: work.length(*pair) for pair in pairs}
        controls = Controls(max_length=work.max_length)
        stream = generate(
            self.network,
            NoText(work.eos),
            prompts,
            work.num_rollouts,
            controls,
            seed=1,
            step=1,
            limits=limits,
        )
        return sum(len(rollout.token_ids) for rollout in stream)


class Limit:
    """Our decoder's products and attention calls, on the same shapes, weights and pages, back to back."""

    def __init__(self, ours: Ours) -> None:
        network = ours.network
        assert isinstance(network, NativeNetwork), "the limit is that of the kernels"
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
            given.positions = native.address(positions)
            count = len(tokens) if wanted is None else len(wanted)
            self.calls.append((session, given, count, (batch, positions)))  # the last keep memory alive
            return found

        Session.run = record  # type: ignore[method-assign]
        try:
            ours()
        finally:
            Session.run = run  # type: ignore[method-assign]

    def __call__(self) -> int:
        long, pointer = ctypes.c_long, ctypes.c_void_p
        for session, batch, wanted, _ in self.calls:
            head = session.network.model.embedding.word_embeddings.weight
            self.run(
                *(session._layers, long(len(session._layers)), ctypes.byref(session._model)),
                *(ctypes.byref(batch), pointer(native.address(head)), long(len(head))),
                *(pointer(native.address(session._buffers["logits"])), long(wanted)),
            )
        return 0


class _EndAtLength(transformers.StoppingCriteria):  # type: ignore[misc]
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
        self.model = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=arch.vocab_size,
            max_sequence_length=arch.max_positions,
            share_embeddings_and_output_weights=arch.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=arch.rope_theta,
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


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, dict[str, Any]]:
    """CPU seconds of each side, the sides in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, int] = {}
    for _ in range(repeats):
        for name, side in sides.items():
            began = cpu_seconds()
            tokens[name] = side()
            seconds[name].append(cpu_seconds() - began)
            print(f"    {name:10} {seconds[name][-1]:8.2f} s", file=sys.stderr, flush=True)
    return {name: {"seconds": seconds[name], "tokens": tokens[name]} for name in sides}


def peak(side: Callable[[], int]) -> int:
    """Bytes that a run takes at its peak beyond what the process had before it."""
    before = psutil.Process().memory_info().rss
    side()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def memory(quick: bool, out: Path | None) -> None:
    """Peak memory at workload c, each side in a process of its own, its model loaded before."""
    found = {}
    for side in ("ours", "hf"):
        command = [sys.executable, __file__, "--workloads", "c", "--peak-of", side, *["--quick"] * quick]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    print(f"c: peak memory  ours {found['ours'] / 2**20:,.0f} MiB, hf {found['hf'] / 2**20:,.0f} MiB, "
          f"ours / hf {found['ours'] / found['hf']:.2f}")  # fmt: skip
    if out:
        write(out, {"machine": machine(), "quick": quick, "peak_bytes_at_c": found})


def write(out: Path, found: dict[str, Any]) -> None:
    """Keep results as JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workloads", default="abcd")
    parser.add_argument("--against", default="hf,hf_forked,megatron,limit,torch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peak memory of ours and hf instead, at c")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # one side, in a process of its own
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    if args.memory:
        memory(args.quick, args.out)
        return
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch, runtime.start(accelerator="cpu") as rt:
        for work in workloads(args.quick, Path(scratch)):
            if work.name not in args.workloads:
                continue
            if args.peak_of == "hf":
                print(json.dumps(peak(HuggingFace(work))))
                return
            ours = Ours(work, rt)
            if args.peak_of == "ours":
                print(json.dumps(peak(ours)))
                return
            makers: dict[str, Callable[[], Callable[[], int]]] = {
                "hf": lambda work=work: HuggingFace(work),
                "hf_forked": lambda work=work: HuggingFaceForked(work),
                "megatron": lambda work=work: MegatronStatic(work, rt),
                "limit": lambda ours=ours: Limit(ours),
                "torch": lambda work=work: Ours(work, rt, compiled=False),
            }
            sides: dict[str, Callable[[], int]] = {"ours": ours}
            sides |= {name: makers[name]() for name in args.against.split(",") if name}
            print(f"workload {work.name}", file=sys.stderr, flush=True)
            results[work.name] = measure(sides, args.repeats)
    table(results)
    if args.out:
        write(args.out, {"machine": machine(), "quick": args.quick, "results": results})


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(results: dict[str, Any]) -> None:
    """Ratios to our side: how many times faster ours is; for the limit, the share of it that ours reaches."""
    for name, sides in results.items():
        ours = median(sides["ours"]["seconds"])
        cells = [f"ours {ours:7.2f} s, {sides['ours']['tokens']} tokens"]
        for side, found in sides.items():
            if side != "ours":
                ratio = median(x / y for x, y in zip(found["seconds"], sides["ours"]["seconds"], strict=True))
                cells.append(f"{side} {ratio:.0%}" if side == "limit" else f"{side} {ratio:.2f}x")
        print(f"{name}: " + "   ".join(cells))


if __name__ == "__main__":
    main()
