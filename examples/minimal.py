"""Rejection sampling fine-tuning on one page, to learn from: plain torch and transformers, one process.

    python examples/minimal.py MODEL PROMPTS.jsonl OUT --reward my_judge.py:score

MODEL is a Hugging Face folder, PROMPTS has a `text` in each row, and `score(prompts, responses, rows)`
returns a number for each response, higher is better. A step samples N answers to each of its prompts, scores
them, keeps the best of each prompt, and makes those more likely. Selection, mask and loss are the functions
that `train_rs.py` calls; a test holds that from the same rollouts both keep the same ones and come to the
same loss.

What it leaves out, and `train_rs.py` has: a judge that is served, is slow or fails (here every response has a
finite score); a ledger, checkpoints and exact continuation; seeds of each rollout's own; held-out prompts and
figures against chance; a learning-rate schedule, weight decay, KL terms and other objectives; chat templates;
memory that is bounded; more than one process.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rs_aligner.batching import even_batches
from rs_aligner.loss import masked_nll, response_mask
from rs_aligner.selection import select_topk
from rs_aligner.users_code import find

Reward = Callable[[list[str], list[str], list[dict[str, Any]]], Sequence[float]]


class Rollout(NamedTuple):
    """One sampled answer: its prompt's tokens, its own (the end token included), and its text."""

    prompt: list[int]
    response: list[int]
    text: str


def sample(model: Any, tokenizer: Any, prompts: Sequence[str], n: int, max_tokens: int) -> list[Rollout]:
    """N answers to each prompt, in the order of the prompts."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}  # the policy's own distribution
    rows = model.generate(**batch, **how, num_return_sequences=n, max_new_tokens=max_tokens)
    width, rollouts = batch["input_ids"].shape[1], []
    for place, row in enumerate(rows.tolist()):
        response = row[width:]
        if tokenizer.eos_token_id in response:  # the end token is learnt, too; padding behind it is not
            response = response[: response.index(tokenizer.eos_token_id) + 1]
        text = tokenizer.decode(response, skip_special_tokens=True)
        rollouts.append(Rollout(tokenizer(prompts[place // n])["input_ids"], response, text))
    return rollouts


def keep(rollouts: Sequence[Rollout], rewards: Sequence[float], n: int, top_n: int) -> list[Rollout]:
    """The `top_n` best of each prompt's N rollouts, in (prompt, rollout) order."""
    mask = select_topk(torch.tensor(rewards, dtype=torch.float64).view(-1, n), top_n)
    return [rollout for rollout, is_kept in zip(rollouts, mask.flatten().tolist(), strict=True) if is_kept]


def loss_of(model: Any, batch: Sequence[Rollout]) -> torch.Tensor:
    """The mean over sequences of their mean negative log-probability of a response token."""
    lengths = torch.tensor([[len(row.prompt), len(row.prompt) + len(row.response)] for row in batch])
    width = int(lengths[:, 1].max())
    tokens = torch.tensor([(row.prompt + row.response + [0] * width)[:width] for row in batch])
    log_probs = model(tokens[:, :-1]).logits.float().log_softmax(-1)  # causal: padding behind changes nothing
    of_next = log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return masked_nll(of_next, response_mask(lengths[:, 0], lengths[:, 1], width), len(batch))


def optimizer_of(model: Any, lr: float) -> torch.optim.Optimizer:
    """Adam as `train_rs.py` has it, without weight decay."""
    return torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98))


def train(model: Any, optimizer: torch.optim.Optimizer, kept: Sequence[Rollout], batch_size: int) -> float:
    """One pass over the kept rollouts, an optimizer step a batch; returns the mean of their losses."""
    losses: list[float] = []
    for batch in even_batches(kept, batch_size):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def fit(model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], reward: Reward, how: Any) -> None:
    """Sample, score, keep, train; a line a step. `how` has the numbers of the command line."""
    optimizer = optimizer_of(model, how.lr)
    for step in range(1, how.steps + 1):
        asked = random.sample(rows, min(how.prompts_per_step, len(rows)))
        rollouts = sample(model, tokenizer, [row["text"] for row in asked], how.n, how.max_tokens)
        each = [row for row in asked for _ in range(how.n)]
        rewards = reward([row["text"] for row in each], [rollout.text for rollout in rollouts], each)
        kept = keep(rollouts, rewards, how.n, how.top_n)
        loss = train(model, optimizer, kept, how.batch_size)
        print(f"step {step}  reward {sum(rewards) / len(rewards):.3f}  loss {loss:.4f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rejection sampling fine-tuning on one page")
    for name in ("model", "prompts", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--reward", default="rs_aligner.reward.judges.sentiment:sentiment")
    numbers = {"steps": 10, "prompts_per_step": 64, "n": 8, "top_n": 1, "batch_size": 16, "max_tokens": 64}
    for name, number in {**numbers, "lr": 1e-5, "seed": 0}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(number), default=number)
    how = parser.parse_args(arguments)
    random.seed(how.seed)
    torch.manual_seed(how.seed)
    model = AutoModelForCausalLM.from_pretrained(how.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(how.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [json.loads(line) for line in how.prompts.open("rb")]
    fit(model, tokenizer, rows, find("--reward", how.reward), how)
    model.save_pretrained(how.out)
    tokenizer.save_pretrained(how.out)


if __name__ == "__main__":
    main()
