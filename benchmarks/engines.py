"""Tokens a CPU second of whoever can sample for a training: our engines, vLLM, llama.cpp; and new weights.

    python benchmarks/engines.py                      everything, about an hour on one core
    python benchmarks/engines.py --quick              one small model, two minutes
    python benchmarks/engines.py --settings stories   one of the settings
    python benchmarks/engines.py --settings 256_bf16,512_bf16 --sides kernels,torch --works few,sampled
                                                      by the width of a model: what `auto` goes by

Every side decodes the same prompts by the same weights and controls, on one thread, and tells tokens and
their log-probabilities. Sides alternate within a run, and what counts are CPU seconds (user and system) of
all processes of a side, medians over the repeats; starting and a small first pass are not among them.

    kernels, torch   our own engines in this process, by `Sampler.generate`
    vllm             a server of vLLM that `rs-aligner serve-rollouts` started, asked directly: its time alone
    vllm_engine      the same server by `Sampler.generate` with `engine: vllm`: its time and this process's
    llama_cpp        llama.cpp's server, asked directly; needs RS_ALIGNER_LLAMA_PYTHON, see `llama_server.py`

The settings are `stories` (stories_wide of RS_ALIGNER_TEST_DATA, fp32) and a Llama of 57 million random
weights, `57m` in fp32 and `57m_bf16`; a number in place of 57m is the width of a Llama of 4 layers. Of each:
16 prompts, 8 rollouts of 64 tokens at temperature 1; `few`, which are those of 2 prompts; and as many greedy
ones, of 128 prompts, since greedy rollouts of a prompt are all equal. How many of the greedy ones
are those of our kernels says whether the weights are the same.

New weights: what `prepare` takes, and the parts of it. Left out on purpose: what an engine does with several
threads, and with prompts that have much in common.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import tokenizers
import torch
import transformers
from engine_sides import (
    LLAMA_PYTHON,
    READY,
    TICK,
    Llama,
    Ours,
    Server,
    Side,
    Vllm,
    Work,
    llama_command,
    llama_python,
    started,
    vllm_command,
)
from generation import DATA, machine, write

from rs_aligner.config import GenerationConfig
from rs_aligner.generation import paged
from rs_aligner.generation.vllm import handover
from rs_aligner.generation.vllm.folder import WeightsFolder
from rs_aligner.generation.vllm.weights import Update
from rs_aligner.model import runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.remote.listening import any_free_port
from rs_aligner.rollout_server.environment import find_python

SIDES = ("kernels", "torch", "vllm", "vllm_engine", "llama_cpp")
MADE = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL = {**MADE, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip  # as many as a line holds
PROMPT_LENGTH = 64
FEW = 2
"""Prompts of the work of that name."""
ROOM = 512
"""Tokens of prompt and response that a server is started for."""


def made_up(folder: Path, sizes: dict[str, Any], dtype: torch.dtype) -> Path:
    """A Llama with random weights, and a tokenizer with a word for each of its ids."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).to(dtype)
    model.save_pretrained(folder)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"w{number}" for number in range(len(words), sizes["vocab_size"])]
    ids = {word: place for place, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def wide(width: int) -> dict[str, Any]:
    """The sizes of a Llama of 4 layers, heads of 64 numbers and a key's head to two or three of them."""
    num_heads = width // 64
    num_kv_heads = num_heads // (3 if num_heads % 3 == 0 else 2)
    layers = {"intermediate_size": width * 8 // 3, "num_hidden_layers": 4}
    heads = {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads}
    return {**MADE, **layers, **heads, "hidden_size": width}


def work_of(setting: str, quick: bool, scratch: Path) -> Work:
    """What a setting's sides decode."""
    num_prompts, each, longest = (4, 4, 32) if quick else (16, 8, 64)
    if setting == "stories":
        tokenizer = Tokenizer(DATA / "stories_wide")
        lines = (DATA / "tinystories" / "prompts_train.jsonl").read_text().splitlines()
        texts = [json.loads(line)["text"] for line in lines[: num_prompts * each]]
        prompts = [tuple(tokenizer.encode(text)) for text in texts]
        return Work((DATA / "stories_wide").resolve(), "fp32", prompts, each, longest)
    precision = "bf16" if setting.endswith("bf16") else "fp32"
    name = setting.removesuffix("_bf16")
    sizes = SMALL if quick else MADE if name == "57m" else wide(int(name))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    folder = made_up(scratch / "model", sizes, dtype)
    rng = random.Random(7)
    vocabulary = range(300, sizes["vocab_size"])
    prompts = [tuple(rng.choices(vocabulary, k=PROMPT_LENGTH)) for _ in range(num_prompts * each)]
    return Work(folder, precision, prompts, each, longest)


def measure(sides: dict[str, Side], work: Work, repeats: int) -> dict[str, dict[str, Any]]:
    """CPU and wall seconds of each side and its tokens, the sides in turn; a small pass warms up."""
    found: dict[str, dict[str, Any]] = {name: {"cpu": [], "wall": [], "tokens": []} for name in sides}
    last: dict[str, list[tuple[int, ...]]] = {}
    for side in sides.values():
        side.sample(replace(work, max_length=2))
    for _ in range(repeats):
        for name, side in sides.items():
            side.before()
            cpu, wall = side.cpu(), time.monotonic()
            last[name] = side.sample(work)
            cpu, wall = max(TICK, side.cpu() - cpu), time.monotonic() - wall
            tokens = sum(map(len, last[name]))
            for figure, value in (("cpu", cpu), ("wall", wall), ("tokens", tokens)):
                found[name][figure].append(value)
            print(f"    {name:12} {cpu:8.2f} s, {tokens} tokens", file=sys.stderr, flush=True)
    for name, one in found.items():
        if work.greedy and "kernels" in last:
            one["equal"] = agreement(last[name], last["kernels"])
        one["ms_a_token"] = 1e3 * median(c / n for c, n in zip(one["cpu"], one["tokens"], strict=True))
        one["tokens_a_cpu_second"] = 1e3 / one["ms_a_token"]
    return found


def agreement(some: list[tuple[int, ...]], others: list[tuple[int, ...]]) -> float:
    """The share of rollouts that are the same, but for an end token that one side does not tell."""
    pairs = zip(some, others, strict=True)
    same = sum(one[:least] == other[:least] for one, other in pairs for least in [min(len(one), len(other))])
    return same / len(some)


@contextlib.contextmanager
def watched(parts: dict[str, tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """Wall seconds of functions, by the names that are given to them; they are put back."""
    seconds: dict[str, float] = dict.fromkeys(parts, 0.0)
    before = {name: getattr(*place) for name, place in parts.items()}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.monotonic() - began

        return call

    for name, (owner, attribute) in parts.items():
        setattr(owner, attribute, timed(name, before[name]))
    try:
        yield seconds
    finally:
        for name, (owner, attribute) in parts.items():
            setattr(owner, attribute, before[name])


def new_weights(sides: dict[str, Side], work: Work, repeats: int) -> dict[str, Any]:
    """What it takes each engine of ours until new weights decode: CPU and wall seconds, medians."""
    parts: dict[str, dict[str, tuple[Any, str]]] = {
        "kernels": {"a wave's working memory": (paged.Session, "__init__")},
        "torch": {},
        "vllm_engine": {
            "what they answer": (handover, "canary_of"),
            "the folder": (WeightsFolder, "write"),
            "the server, which answers": (Update, "run"),
        },
    }
    found: dict[str, Any] = {}
    for name, watching in parts.items():
        side = sides.get(name)
        if not isinstance(side, Ours):
            continue
        turns = []
        for repeat in range(repeats):
            with watched(watching) as seconds:
                cpu, wall = side.cpu(), time.monotonic()
                side.sampler.decoder.prepare(1 + repeat)
                turn = {"cpu": side.cpu() - cpu, "wall": time.monotonic() - wall}
                if name == "kernels":
                    side.sample(work)
            turns.append({**turn, **{f"wall of {part}": value for part, value in seconds.items()}})
        found[name] = {figure: median(turn[figure] for turn in turns) for figure in turns[0]}
    return found


class Wanted(NamedTuple):
    """What is measured of a setting."""

    sides: list[str]
    works: list[str]
    repeats: int
    quick: bool


class Sides(NamedTuple):
    """Who decodes, ready to; what the servers took to start, and which they are."""

    sides: dict[str, Side]
    starts: dict[str, dict[str, float]]
    versions: dict[str, str]


@contextlib.contextmanager
def ready(work: Work, wanted: Wanted, scratch: Path, rt: runtime.Runtime) -> Iterator[Sides]:
    """The sides; their servers end with the context."""
    found = Sides({}, {}, {})
    with contextlib.ExitStack() as stack:

        def start(what: str, command: list[str], port: int) -> Server:
            began, log = time.monotonic(), scratch / f"{what}.log"
            server = stack.enter_context(started(command, port, log))
            found.starts[what] = {"cpu": server.cpu(), "wall": time.monotonic() - began}
            found.versions[what] = next(line for line in log.read_text().splitlines() if READY in line)
            return server

        for engine in ("kernels", "torch"):
            if engine in wanted.sides:
                found.sides[engine] = Ours(work, rt, GenerationConfig(engine=engine))
        if {"vllm", "vllm_engine"} & set(wanted.sides):
            port = any_free_port()
            server = start("vllm", vllm_command(work, port, scratch, ROOM), port)
            if "vllm" in wanted.sides:
                found.sides["vllm"] = Vllm(server, Tokenizer(work.folder).eos_ids)
            if "vllm_engine" in wanted.sides:
                config = GenerationConfig(engine="vllm", endpoints=(server.address,))
                engine = Ours(work, rt, config, scratch / "weights", server)
                stack.callback(engine.sampler.decoder.close, is_over=True)
                found.sides["vllm_engine"] = engine
        if "llama_cpp" in wanted.sides and (python := llama_python()) is not None:
            port = any_free_port()
            command = llama_command(python, work, port, scratch / "model.gguf")
            found.sides["llama_cpp"] = Llama(start("llama_cpp", command, port))
        yield found


def setting_of(name: str, wanted: Wanted, rt: runtime.Runtime) -> dict[str, Any]:
    """All that is measured of a setting."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        work = work_of(name, wanted.quick, Path(scratch))
        works = {"sampled": work.sampled, "few": work.few(FEW), "greedy": work.as_greedy}
        measured: dict[str, Any] = {}
        with ready(work, wanted, Path(scratch), rt) as found:
            for kind in wanted.works:
                print(f"{name}, {kind}", file=sys.stderr, flush=True)
                measured[kind] = measure(found.sides, works[kind], wanted.repeats)
            weights = new_weights(found.sides, work.sampled, wanted.repeats)
    return {
        **measured,
        "new weights": weights,
        "starts": found.starts,
        "servers": found.versions,
        "load": [load, os.getloadavg()],
    }


def available(wanted: list[str]) -> list[str]:
    """The sides that can be measured here; says which cannot, and why."""
    missing = {}
    try:
        find_python()
    except ValueError as error:
        missing |= dict.fromkeys(("vllm", "vllm_engine"), str(error))
    if llama_python() is None:
        missing["llama_cpp"] = f"{LLAMA_PYTHON} names no Python"
    for side in wanted:
        if side in missing:
            print(f"{side} is left out: {missing[side]}", file=sys.stderr)
    return [side for side in wanted if side not in missing]


def table(results: dict[str, Any]) -> None:
    """CPU milliseconds a token, and tokens a CPU second."""
    for name, found in results.items():
        for kind in (one for one in ("few", "sampled", "greedy") if one in found):
            cells = [
                f"{side} {one['ms_a_token']:.3f} ms ({one['tokens_a_cpu_second']:,.0f}/s"
                + (f", {one['equal']:.0%} equal)" if "equal" in one else ")")
                for side, one in found[kind].items()
            ]
            print(f"{name}, {kind}: " + "   ".join(cells))
        for side, one in found["new weights"].items():
            print(f"{name}, new weights: {side} " + ", ".join(f"{k} {v:.3f} s" for k, v in one.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--settings", default="stories,57m,57m_bf16")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--works", default="sampled,greedy")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    sides, works = available(args.sides.split(",")), args.works.split(",")
    wanted = Wanted(sides, works, args.repeats, args.quick)
    settings = ["57m"] if args.quick and args.settings == parser.get_default("settings") else None
    results: dict[str, Any] = {}
    with runtime.start(accelerator="cpu") as rt:
        for name in settings or args.settings.split(","):
            results[name] = setting_of(name, wanted, rt)
            if args.out:
                write(args.out, {"machine": machine(), "quick": args.quick, "results": results})
    table(results)


if __name__ == "__main__":
    main()
