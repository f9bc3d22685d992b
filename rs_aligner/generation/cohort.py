"""Rollouts that are decoded side by side: choosing their next tokens, and noticing which have ended."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.cache import CohortCache
from rs_aligner.generation.network import Network
from rs_aligner.generation.rows import Ended, RolloutRow
from rs_aligner.generation.sampling import Controls, choose, penalize, uniforms
from rs_aligner.generation.text import EndStrings
from rs_aligner.rollout import FinishReason

PACK_BELOW = 0.875  # a cohort is packed when a smaller share of its rows is still alive


class Cohort:
    """Rollouts that were admitted together, and so are equally long.

    Attributes:
        rows: those in the cache; some may have ended since it was packed.
        positions: int64 `[R]`, where each row's newest token is in its sequence.
        logits: float32 `[R, V]` behind each row's newest token.
    """

    def __init__(
        self,
        network: Network,
        end_strings: EndStrings,
        controls: Controls,
        allowed: AllowedTokens,
        rows: list[RolloutRow],
        prompt_logits: torch.Tensor,
        cache: CohortCache,
    ) -> None:
        self.network, self.end_strings, self.controls = network, end_strings, controls
        self.allowed, self.rows, self.cache = allowed, rows, cache
        device = self.network.device
        self.logits = prompt_logits.index_select(0, torch.tensor(cache.owners, device=device))
        self.positions = torch.tensor([len(row.prompt.token_ids) for row in rows], device=device)
        self.tokens = torch.zeros(len(rows), self.controls.max_length, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(len(rows), self.controls.max_length, device=device)
        self.length = 0
        self.alive = torch.ones(len(rows), dtype=torch.bool)
        self.seeds = [row.seed for row in rows]
        self.limits = torch.tensor([row.limit for row in rows])
        self.eos = torch.tensor(end_strings.eos_ids, dtype=torch.long, device=device)
        self.seen = self._seen() if self.controls.repetition_penalty != 1.0 else None

    @property
    def last(self) -> torch.Tensor:
        """The newest token of each row."""
        return self.tokens[:, self.length - 1]

    def choose(self) -> Iterator[Ended]:
        """Choose each row's next token; yields the rollouts that end with it."""
        tokens, log_probs = self._sample()
        self.tokens[:, self.length] = tokens
        self.log_probs[:, self.length] = log_probs
        self.length += 1
        if self.seen is not None:
            self.seen.scatter_(1, tokens.unsqueeze(1), True)
        stopped = (tokens.unsqueeze(1) == self.eos).any(1).cpu()
        if self.controls.end_strings and self.length >= self.controls.min_length:
            newest = tokens.tolist()
            for i in (self.alive & ~stopped).nonzero().flatten().tolist():
                if self.end_strings.may_complete(newest[i]):
                    so_far = self.tokens[i, : self.length].tolist()
                    stopped[i] = self.end_strings.completed(self.rows[i].prompt.token_ids, so_far)
        ended = self.alive & (stopped | (self.limits == self.length))
        self.alive &= ~ended
        for i in ended.nonzero().flatten().tolist():
            reason: FinishReason = "stop" if stopped[i] else "length"
            tokens_i = self.tokens[i, : self.length].tolist()
            yield self.rows[i], tokens_i, self.log_probs[i, : self.length].tolist(), reason

    def pack(self) -> bool:
        """Let go of ended rows where that pays; False if none is left."""
        keep = self.alive.nonzero().flatten()
        if len(keep) == 0:
            return False
        if len(keep) < PACK_BELOW * len(self.rows):
            rows = keep.tolist()
            self.limits = self.limits[keep]
            keep = keep.to(self.network.device)
            self.cache.keep(rows)
            self.rows = [self.rows[i] for i in rows]
            self.seeds = [self.seeds[i] for i in rows]
            self.alive = torch.ones(len(rows), dtype=torch.bool)
            self.tokens, self.log_probs = self.tokens[keep], self.log_probs[keep]
            self.positions = self.positions[keep]
            self.seen = self.seen[keep] if self.seen is not None else None
        return True

    def _sample(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 `[R]` and their log-probabilities float32 `[R]`, the same on every rank."""
        device = self.network.device
        if self.network.runtime.is_last_stage:
            logits = self.logits
            log_probs = logits.log_softmax(-1)
            if self.seen is not None:
                logits = penalize(logits, self.seen, self.controls.repetition_penalty)
            logits = self.allowed.restrict(logits, torch.tensor([self.length]))
            uniform = torch.from_numpy(uniforms(self.seeds, [self.length] * len(self.seeds))).to(device)
            unchanged = log_probs if logits is self.logits else None
            tokens = choose(logits, self.controls, uniform, log_probs=unchanged)
            picked = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        else:
            tokens = torch.zeros(len(self.rows), dtype=torch.long, device=device)
            picked = torch.zeros(len(self.rows), device=device)
        runtime = self.network.runtime
        return runtime.from_chooser(tokens), runtime.from_chooser(picked)

    def _seen(self) -> torch.Tensor:
        seen = torch.zeros(len(self.rows), self.network.arch.vocab_size, dtype=torch.bool)
        for i, row in enumerate(self.rows):
            seen[i, list(row.prompt.token_ids)] = True
        return seen.to(self.network.device)
