"""Choosing the next tokens from logits in tiles: by the kernel where it can, else as torch does."""

from __future__ import annotations

import numpy as np
import torch

from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.native import LANES
from rs_aligner.generation.native_network import Session
from rs_aligner.generation.sampling import Controls, choose, penalize, uniforms
from rs_aligner.model.compiled import address


class Chooser:
    """Chooses tokens, the same on every rank.

    Args:
        session: where the logits come from.
        controls: how to sample.
        allowed: which tokens may come.
    """

    def __init__(self, session: Session, controls: Controls, allowed: AllowedTokens) -> None:
        self.session, self.controls, self.allowed = session, controls, allowed
        filtered = controls.top_k > 0 or controls.top_p < 1
        self._on_torch = controls.repetition_penalty != 1.0 or (filtered and not controls.greedy)
        self._sums = np.zeros((session.arch.vocab_size // LANES + 1) * LANES, dtype=np.float32)

    def choose(
        self, logits: torch.Tensor, seeds: np.ndarray, lengths: np.ndarray, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose the next token of each of R rows.

        Args:
            logits: in tiles (looked at on the last pipeline stage).
            seeds: uint64 `[R]`.
            lengths: int64 `[R]`, tokens of the responses so far.
            seen: bool `[R, V]`, tokens of prompt and response so far; only read for a repetition penalty.

        Returns:
            Tokens, int32 `[R]`, and their log-probabilities under the logits as they are, float32 `[R]`.
        """
        count, controls = len(seeds), self.controls
        tokens, log_probs = np.zeros(count, dtype=np.int32), np.zeros(count, dtype=np.float32)
        if self.session.runtime.is_last_stage:
            if self._on_torch:
                tokens, log_probs = self._choose_on_torch(logits, seeds, lengths, seen)
            else:
                self.session.kernels.choose(
                    *(address(logits), logits.shape[1], count, address(seeds), address(lengths)),
                    *(controls.inverse_temperature, controls.greedy, address(self.allowed.kinds)),
                    *(controls.min_length, address(self._sums), address(tokens), address(log_probs)),
                )
        for array in (tokens, log_probs):
            self.session.runtime.from_chooser(torch.from_numpy(array))
        return tokens, log_probs

    def _choose_on_torch(
        self, logits: torch.Tensor, seeds: np.ndarray, lengths: np.ndarray, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        count, vocab, controls = len(seeds), logits.shape[1], self.controls
        rows = torch.empty(count, vocab)
        self.session.kernels.rows(address(logits), address(rows), vocab, count)
        log_probs = rows.log_softmax(-1)
        if controls.repetition_penalty != 1.0:
            rows = penalize(rows, torch.from_numpy(seen), controls.repetition_penalty)
        rows = self.allowed.restrict(rows, torch.from_numpy(lengths))
        tokens = choose(rows, controls, torch.from_numpy(uniforms(seeds.tolist(), lengths.tolist())))
        picked = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return tokens.numpy().astype(np.int32), picked.numpy()
