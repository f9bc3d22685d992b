"""What a model has learnt and what it has forgotten: the same measurement for every system compared.

    python benchmarks/measuring.py runs/stories/final ...           a JSON line for each Hugging Face folder
    python benchmarks/measuring.py --curve runs/trl/curve.jsonl     measures each folder that a curve names

    held_out_score   mean score of 4 sampled completions (temperature 1, at most 64 tokens) of each of the
                     128 openings that nobody trains on, by the sentiment judge; held_out_se is its standard
                     error, with the openings as the units
    cross_entropy    on real stories, in nats a token: `<s>` first, the first 256 tokens of each, mean over
                     all tokens, on the last 300 of `stories.jsonl`. Recipes may train on the first 317

The drift of a model is its cross-entropy less that of the start. Sampling is plain `transformers`, none of
the systems' own, and draws the same numbers for each model. Nothing here is timed.

A curve is a JSON Lines file: a row for each kept checkpoint, with `step`, `cpu_seconds`, `generated_tokens`
and `folder` (beside the file). `--curve` writes `measured.jsonl` beside it: the same rows, with the figures
above and `drift` from the row of step 0. Left out on purpose: what is made of curves (`curves.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from rs_aligner.data import load_prompts
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.reward.judges.sentiment import sentiment

DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", "../shared/data"))
NUM_ANCHORS = 317
"""Stories from the front of the file that recipes may train on; the cross-entropy is that of the others."""
MAX_NEW_TOKENS = 64
MAX_STORY_TOKENS = 256


def measure(folder: Path, *, data: Path = DATA, num_completions: int = 4, seed: int = 0) -> dict[str, float]:
    """Score and cross-entropy of a model.

    Args:
        folder: a Hugging Face folder with its tokenizer.
        data: the folder of test data.
        num_completions: sampled for each held-out opening.
        seed: of the sampling.

    Returns:
        `held_out_score` and `held_out_se` (units of the judge), `cross_entropy` (nats a token).

    Raises:
        ValueError: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no Hugging Face folder (no config.json); name one with a saved model")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer(folder)
    score, error = held_out_score(model, tokenizer, data, num_completions, seed)
    return {
        "held_out_score": score,
        "held_out_se": error,
        "cross_entropy": cross_entropy(model, tokenizer, held_out_stories(data)),
    }


def held_out_stories(data: Path) -> list[str]:
    """The real stories that no recipe trains on."""
    lines = (data / "tinystories" / "stories.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[NUM_ANCHORS:]]


def held_out_score(
    model: transformers.PreTrainedModel, tokenizer: Tokenizer, data: Path, num_completions: int, seed: int
) -> tuple[float, float]:
    """Mean score over the held-out openings, and its standard error with the openings as units."""
    file = str(data / "tinystories" / "prompts_validation.jsonl")
    prompts = load_prompts([file], tokenizer, max_prompt_length=448).prompts
    rows = [prompt for prompt in prompts for _ in range(num_completions)]
    responses = sample(model, tokenizer, [prompt.token_ids for prompt in rows], seed)
    scores = sentiment([prompt.text for prompt in rows], responses, [prompt.metadata for prompt in rows])
    means = [
        statistics.fmean(scores[start : start + num_completions])
        for start in range(0, len(scores), num_completions)
    ]
    return statistics.fmean(means), statistics.stdev(means) / len(means) ** 0.5


@torch.no_grad()
def sample(
    model: transformers.PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], seed: int
) -> list[str]:
    """One sampled completion of each prompt, as the text that the judge gets."""
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_ids[0]
    longest = max(map(len, prompts))
    tokens_BS = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BS = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=list(tokenizer.eos_ids),
        pad_token_id=pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole_BT = model.generate(input_ids=tokens_BS, attention_mask=mask_BS, generation_config=config)
    texts = []
    for prompt, row in zip(prompts, whole_BT[:, longest:].tolist(), strict=True):
        end = next((place for place, token in enumerate(row) if token in tokenizer.eos_ids), len(row))
        texts.append(tokenizer.continuation(prompt, row[:end]))
    return texts


@torch.no_grad()
def cross_entropy(
    model: transformers.PreTrainedModel, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int = 32
) -> float:
    """Mean negative log-probability of a token, in nats; the begin token is given, not predicted."""
    rows = [tokenizer.encode(text)[:MAX_STORY_TOKENS] for text in texts]
    assert all(row[0] == tokenizer.bos_id for row in rows)
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        width = max(map(len, part))
        # Filled up on the right, where a causal model cannot see; -100 is what the loss leaves out.
        tokens_BS = torch.tensor([row + [0] * (width - len(row)) for row in part])
        targets_BT = torch.tensor([row[1:] + [-100] * (width - len(row)) for row in part])
        logits_BTV = model(tokens_BS).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="sum"
        )
        total += float(losses)
        count += int((targets_BT != -100).sum())
    return total / count


def measure_curve(
    curve: Path, *, data: Path = DATA, known: dict[str, dict[str, float]] | None = None
) -> list[dict[str, Any]]:
    """Measure every checkpoint of a curve; the rows go to `measured.jsonl` beside it, too.

    Args:
        curve: the file of rows, with the folders that it names beside it.
        data: the folder of test data.
        known: what was measured before, by a digest of the weights; added to. All runs start alike.

    Raises:
        ValueError: the curve does not begin with step 0, from which drift counts.
    """
    known = {} if known is None else known
    rows = [json.loads(line) for line in curve.read_text().splitlines()]
    if not rows or rows[0]["step"] != 0:
        raise ValueError(f"{curve} should begin with a row of step 0, the start; drift counts from there")
    for row in rows:
        folder = curve.parent / row["folder"]
        weights = digest(folder)
        if weights not in known:
            known[weights] = measure(folder, data=data)
        row.update(known[weights])
        row["drift"] = row["cross_entropy"] - rows[0]["cross_entropy"]
        print(json.dumps(row), flush=True)
    (curve.parent / "measured.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def digest(folder: Path) -> str:
    """A fingerprint of a saved model's weights.

    Raises:
        ValueError: the folder has none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no weights (*.safetensors); name a folder with a saved model")
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--curve", action="append", type=Path, default=[])
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for folder in args.folders:
        print(json.dumps({"folder": str(folder), **measure(folder)}), flush=True)
    known: dict[str, dict[str, float]] = {}
    for curve in args.curve:
        measure_curve(curve, known=known)


if __name__ == "__main__":
    main()
