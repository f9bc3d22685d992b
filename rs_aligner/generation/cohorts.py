"""The decoding loop on torch, for a GPU or a CPU without a compiler: rollouts side by side in cohorts.

Each prompt is prefilled once for all its rollouts; a rollout that ends leaves at once, and the cache is
packed when enough have left. Where the wave does not fit into the cache's budget as a whole, rollouts wait
and are admitted, in order, as slots become free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.cache import CohortCache, PromptCache
from rs_aligner.generation.cohort import Cohort
from rs_aligner.generation.decoder import Wave
from rs_aligner.generation.network import Network
from rs_aligner.generation.rows import Ended, RolloutRow
from rs_aligner.model.attending import Rule
from rs_aligner.rollout import Prompt

PREFILL_TOKENS = 8192  # padded prompt tokens in one prefill pass; bounds its activations
ADMIT_FROM = 0.25  # rollouts are admitted when this share of the slots is free: few large cohorts


class CohortWave:
    """The rollouts of a wave: waiting, being decoded in cohorts, ended; arguments as of `PagedWave`."""

    def __init__(self, network: Network, wave: Wave, kv_cache_bytes: int | None) -> None:
        rows, controls = wave.rows, wave.controls
        self.network, self.controls = network, controls
        self.end_strings, self.stops = wave.end_strings, wave.stops
        self.allowed = AllowedTokens(
            network.arch.vocab_size, self.end_strings.eos_ids, controls.min_length, network.allowed
        )
        self.waiting = rows
        self.cohorts: list[Cohort] = []
        self.longest = max(len(row.prompt.token_ids) for row in rows)
        self.slots: float = float("inf")
        if kv_cache_bytes is not None:
            # A layer that grows exists twice for a moment.
            usable = kv_cache_bytes * network.num_layers / (network.num_layers + 1)
            self.slots = usable // network.bytes_per_token
            if self.slots < self._slots(rows[:1]):
                needed = self._slots(rows[:1]) * network.bytes_per_token
                raise ValueError(
                    f"model.rs.generation.kv_cache_bytes={kv_cache_bytes} is too little for one rollout: "
                    f"{self.longest} prompt and {controls.max_length} response tokens need "
                    f"{needed * (network.num_layers + 1) // network.num_layers + 1}"
                )
        # A prompt of which some rollouts still wait keeps its prefill, by group.
        self.kept_prefill: dict[int, tuple[torch.Tensor, PromptCache]] = {}

    def run(self) -> Iterator[Ended]:
        """Decode to the end, or until it is to stop; each rollout is yielded when it ends."""
        while not self.stops():
            self._admit()
            if not self.cohorts:
                return
            for cohort in self.cohorts:
                yield from cohort.choose()
            self.cohorts = [cohort for cohort in self.cohorts if cohort.pack()]
            if self.cohorts:
                self._decode()

    def _admit(self) -> None:
        """Admit as many waiting rollouts as surely fit, if they are many or nothing else is going on."""
        if not self.waiting:
            return
        free = self.slots - sum(self._slots(cohort.rows) for cohort in self.cohorts)
        rows: list[RolloutRow] = []
        needed = 0
        for row in self.waiting:
            needed += self._slots([row])
            if rows and rows[-1].group == row.group:
                needed -= self.longest  # they share their prompt
            if needed > free:
                break
            rows.append(row)
        if not rows or (self.cohorts and len(rows) < len(self.waiting) and free < ADMIT_FROM * self.slots):
            return
        self.waiting = self.waiting[len(rows) :]
        prompts = list({row.group: row.prompt for row in rows}.items())
        logits, cache = self._prefill(prompts)
        counts = [sum(row.group == group for row in rows) for group, _ in prompts]
        cohort_cache = CohortCache(cache, counts, max(row.limit for row in rows))
        self.cohorts.append(
            Cohort(
                *(self.network, self.end_strings, self.controls, self.allowed),
                *(rows, logits, cohort_cache),
            )
        )

    def _slots(self, rows: Sequence[RolloutRow]) -> int:
        """Most slots of keys and values that these rollouts can come to take, however prompts are held."""
        prompts = len({row.group for row in rows}) * self.longest
        return prompts + len(rows) * (self.longest + self.controls.max_length)

    def _prefill(self, prompts: Sequence[tuple[int, Prompt]]) -> tuple[torch.Tensor, PromptCache]:
        """Logits behind the prompts, and their cache; no prompt is run twice if its rollouts come apart."""
        network = self.network
        done: dict[int, tuple[torch.Tensor, PromptCache]] = {}
        for chunk in _chunks([item for item in prompts if item[0] not in self.kept_prefill]):
            lengths = [len(prompt.token_ids) for _, prompt in chunk]
            tokens = torch.zeros(len(chunk), max(lengths), dtype=torch.long)
            for i, (_, prompt) in enumerate(chunk):
                tokens[i, : lengths[i]] = torch.tensor(prompt.token_ids)
            logits, cache = network.prefill(tokens.to(network.device), lengths)
            for i, (group, _) in enumerate(chunk):
                done[group] = logits[i : i + 1], cache.select([i])
        done |= self.kept_prefill
        found = [done[group] for group, _ in prompts]
        last = prompts[-1][0]
        unfinished = bool(self.waiting) and self.waiting[0].group == last
        self.kept_prefill = {last: done[last]} if unfinished else {}
        return torch.cat([logits for logits, _ in found]), PromptCache.join([cache for _, cache in found])

    def _decode(self) -> None:
        """One more token for every row of every cohort, in one pass."""
        cohorts = self.cohorts
        sizes = [len(cohort.rows) for cohort in cohorts]

        def attend(layer: int, qkv: torch.Tensor, rule: Rule) -> torch.Tensor:
            if len(cohorts) == 1:
                return cohorts[0].cache.attend(layer, qkv, rule)
            parts = zip(cohorts, qkv.split(sizes), strict=True)
            return torch.cat([cohort.cache.attend(layer, part, rule) for cohort, part in parts])

        logits = self.network.decode(
            torch.cat([cohort.last for cohort in cohorts]),
            torch.cat([cohort.positions for cohort in cohorts]),
            attend,
        )
        for cohort, part in zip(cohorts, logits.split(sizes), strict=True):
            cohort.logits = part
            cohort.positions = cohort.positions + 1
            cohort.cache.advance()


def _chunks(prompts: Sequence[tuple[int, Prompt]]) -> Iterator[list[tuple[int, Prompt]]]:
    """Prompts of similar length together, each padded chunk of at most `PREFILL_TOKENS` tokens."""
    chunk: list[tuple[int, Prompt]] = []
    for item in sorted(prompts, key=lambda item: (len(item[1].token_ids), item[0])):
        if chunk and (len(chunk) + 1) * len(item[1].token_ids) > PREFILL_TOKENS:
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk
