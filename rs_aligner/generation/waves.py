"""The decoding loop: waves of prompts in, a stream of finished rollouts out.

A wave is the set of prompts decoded together. Each prompt is prefilled once and its cache forked to
its rollouts; a rollout that ends leaves at once, and the cache is packed when enough have left. What
is decoded together depends on the prompts and tokens only, never on the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from rs_aligner.generation.network import Cache, Network
from rs_aligner.generation.sampling import Controls, choose, derive_seed, penalize, uniforms
from rs_aligner.rollout import FinishReason, Prompt, Rollout

PREFILL_TOKENS = 8192  # padded prompt tokens in one prefill pass; bounds its activations
PACK_BELOW = 0.875  # the cache is packed when a smaller share of its rows is still alive


class Tokenizer(Protocol):
    """What the loop asks of a tokenizer."""

    eos_ids: tuple[int, ...]

    def continuation(self, prompt: Sequence[int], response: Sequence[int]) -> str:
        """The text that the response adds to the prompt's, special tokens left out."""


@dataclass(slots=True)
class _Row:
    """A rollout in the making."""

    group: int
    index: int
    seed: int
    prompt: Prompt
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


def generate(
    network: Network,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[int, Prompt]],
    num_rollouts: int,
    controls: Controls,
    *,
    seed: int,
    step: int,
    policy_version: int = 0,
    wave_size: int | None = None,
) -> Iterator[Rollout]:
    """Draw `num_rollouts` rollouts for each prompt; each is yielded as soon as it ends.

    Every rank of a replica must run this with the same arguments and to the end.

    Args:
        network: the policy's forward pass.
        tokenizer: of the policy.
        prompts: `(group, prompt)` pairs; the group is the prompt's number in the step.
        num_rollouts: N.
        controls: how to sample.
        seed, step: with the prompt's position and the rollout's index they give its seed.
        policy_version: written into the rollouts.
        wave_size: prompts decoded together; all of them by default.
    """
    wave_size = wave_size or max(1, len(prompts))  # a replica may have no prompt of a short step
    for start in range(0, len(prompts), wave_size):
        rows = [
            _Row(group, index, derive_seed(seed, step, prompt.position, index), prompt)
            for group, prompt in prompts[start : start + wave_size]
            for index in range(num_rollouts)
        ]
        for row, reason in _Wave(network, tokenizer, rows, num_rollouts, controls).run():
            text = _text(tokenizer, row, controls.end_strings if reason == "stop" else ())
            yield Rollout(
                group=row.group,
                index=row.index,
                token_ids=tuple(row.tokens),
                text=text,
                finish_reason=reason,
                policy_version=policy_version,
                seed=row.seed,
                log_probs=tuple(row.log_probs),
            )


class _Wave:
    """Rows that are decoded together, and their cache."""

    def __init__(
        self, network: Network, tokenizer: Tokenizer, rows: list[_Row], num_rollouts: int, controls: Controls
    ) -> None:
        self.network, self.tokenizer, self.controls = network, tokenizer, controls
        self.rows: list[_Row | None] = list(rows)
        self.num_rollouts = num_rollouts
        self.eos = torch.tensor(tokenizer.eos_ids, dtype=torch.long, device=network.device)
        self.eos_ids = frozenset(tokenizer.eos_ids)

    def run(self) -> Iterator[tuple[_Row, FinishReason]]:
        cache, logits = self._prefill()
        lengths = torch.tensor(
            [len(row.prompt.token_ids) for row in self.rows if row is not None], device=self.network.device
        )
        longest = int(lengths.max())
        seen = self._seen(logits.shape[0])
        for place in range(self.controls.max_length):
            tokens, log_probs = self._choose(logits, place, seen)
            for i, (token, log_prob) in enumerate(zip(tokens.tolist(), log_probs.tolist(), strict=True)):
                row = self.rows[i]
                if row is None:
                    continue
                row.tokens.append(token)
                row.log_probs.append(log_prob)
                reason = self._ended(row)
                if reason is not None:
                    self.rows[i] = None
                    yield row, reason
            alive = [i for i, row in enumerate(self.rows) if row is not None]
            if not alive:
                return
            if seen is not None:
                seen[torch.arange(len(tokens), device=seen.device), tokens] = True
            if len(alive) < PACK_BELOW * len(self.rows):
                keep = torch.tensor(alive, device=self.network.device)
                self.rows = [self.rows[i] for i in alive]
                cache, tokens, lengths = cache.select(keep), tokens[keep], lengths[keep]
                seen = seen[keep] if seen is not None else None
            logits = self.network.decode(tokens, lengths, cache, longest + place)
            lengths = lengths + 1

    def _prefill(self) -> tuple[Cache, torch.Tensor]:
        """Prefill each prompt once and fork; returns the cache and logits of all rows."""
        prompts = [row.prompt.token_ids for row in self.rows[:: self.num_rollouts] if row is not None]
        longest = max(len(prompt) for prompt in prompts)
        room = longest + self.controls.max_length
        cache = self.network.new_cache(len(self.rows), room)
        logits: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        for chunk in _chunks(order, [len(prompts[i]) for i in order]):
            lengths = torch.tensor([len(prompts[i]) for i in chunk], device=self.network.device)
            tokens = torch.zeros(len(chunk), max(len(prompts[i]) for i in chunk), dtype=torch.long)
            for j, i in enumerate(chunk):
                tokens[j, : len(prompts[i])] = torch.tensor(prompts[i])
            part = self.network.new_cache(len(chunk), tokens.shape[1])
            found = self.network.prefill(tokens.to(self.network.device), lengths, part)
            for j, i in enumerate(chunk):
                logits[i] = found[j]
                rows = slice(i * self.num_rollouts, (i + 1) * self.num_rollouts)
                cache.keys[:, rows, :, : tokens.shape[1]] = part.keys[:, j : j + 1]
                cache.values[:, rows, :, : tokens.shape[1]] = part.values[:, j : j + 1]
        return cache, torch.stack(logits).repeat_interleave(self.num_rollouts, dim=0)

    def _choose(
        self, logits: torch.Tensor, place: int, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 `[B]` and their log-probabilities float32 `[B]`, the same on every rank."""
        if self.network.runtime.is_last_stage:
            log_probs = logits.log_softmax(-1)
            if seen is not None:
                logits = penalize(logits, seen, self.controls.repetition_penalty)
            if place < self.controls.min_length:
                logits = logits.index_fill(-1, self.eos, -torch.inf)
            seeds = [0 if row is None else row.seed for row in self.rows]
            uniform = torch.from_numpy(uniforms(seeds, [place] * len(seeds))).to(logits.device)
            tokens = choose(logits, self.controls, uniform)
            picked = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        else:
            tokens = torch.zeros(len(self.rows), dtype=torch.long, device=self.network.device)
            picked = torch.zeros(len(self.rows), device=self.network.device)
        return self.network.from_last_stage(tokens), self.network.from_last_stage(picked)

    def _seen(self, num_rows: int) -> torch.Tensor | None:
        if self.controls.repetition_penalty == 1.0:
            return None
        seen = torch.zeros(num_rows, self.network.arch.vocab_size, dtype=torch.bool)
        for i, row in enumerate(self.rows):
            assert row is not None
            seen[i, list(row.prompt.token_ids)] = True
        return seen.to(self.network.device)

    def _ended(self, row: _Row) -> FinishReason | None:
        if row.tokens[-1] in self.eos_ids:
            return "stop"
        if len(row.tokens) >= self.controls.min_length and _has_end_string(
            self.tokenizer, row, self.controls.end_strings
        ):
            return "stop"
        return "length" if len(row.tokens) == self.controls.max_length else None


def _end_string_at(
    tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int], end_strings: Sequence[str]
) -> int | None:
    """Where in the tokens' text the first end string begins that the newest token completes, if any.

    One that an earlier token completed was passed over for `min_length` and is text like any other.
    """
    text = tokenizer.continuation(prompt, tokens)
    if not any(end in text for end in end_strings):
        return None
    before = tokenizer.continuation(prompt, tokens[:-1]).rstrip("\ufffd")  # stands for part of a character
    places = [text.find(end, max(0, len(before) - len(end) + 1)) for end in end_strings]
    return min((place for place in places if place >= 0), default=None)


def _has_end_string(tokenizer: Tokenizer, row: _Row, end_strings: Sequence[str]) -> bool:
    """Whether the newest token completes an end string, which may span several tokens."""
    if not end_strings:
        return False
    # Decoding the last tokens is enough: one adds a byte at least, but for special tokens and the piece
    # that stands for a space alone; the margin is for those.
    reach = max(len(end.encode()) for end in end_strings) + 8
    before, tail = row.tokens[:-reach], row.tokens[-reach:]
    context = (*row.prompt.token_ids, *before)[-reach:]
    return _end_string_at(tokenizer, context, tail, end_strings) is not None


def _text(tokenizer: Tokenizer, row: _Row, end_strings: Sequence[str]) -> str:
    """The response's text, up to the end string that ended it."""
    place = _end_string_at(tokenizer, row.prompt.token_ids, row.tokens, end_strings)
    return tokenizer.continuation(row.prompt.token_ids, row.tokens)[:place]


def _chunks(order: Sequence[int], widths: Sequence[int]) -> Iterator[list[int]]:
    """Cut prompts, sorted by length, so that each padded chunk has at most `PREFILL_TOKENS` tokens."""
    chunk: list[int] = []
    for i, width in zip(order, widths, strict=True):
        if chunk and (len(chunk) + 1) * width > PREFILL_TOKENS:
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
