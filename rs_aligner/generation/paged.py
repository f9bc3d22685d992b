"""The decoding loop on a CPU: rollouts join when there is room and leave when they end, one by one.

All rollouts of a wave that are alive go through the model together, wherever each is in its text. A prompt is
run once; its rollouts share its pages. Rollouts that surely fit are admitted in order; with
`kv_cache_bytes` the others wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from rs_aligner.generation.allowed import AllowedTokens
from rs_aligner.generation.choosing import Chooser
from rs_aligner.generation.decoder import Wave
from rs_aligner.generation.native import LANES, tile_shape
from rs_aligner.generation.native_network import NativeNetwork, Session, TokenBatch
from rs_aligner.generation.pages import pages_of
from rs_aligner.generation.rows import Ended, RolloutRow
from rs_aligner.rollout import FinishReason, Prompt

PREFILL_TOKENS = 512  # prompt tokens in one pass; bounds its activations
ADMIT_FROM = 0.25  # rollouts are admitted when this share of the room is free: seldom, and several at once
# Where at least so many rollouts' keys and values fit into this much memory, which a processor keeps near, no
# more are decoded together: reading them from afar costs more than the larger products save.
NEAR_BYTES = 8 * 2**20
LEAST_TOGETHER = 32


@dataclass(slots=True)
class _PromptPages:
    """A prompt that was run, while rollouts of it are alive or wait.

    Attributes:
        pages: its own.
        logits: float32 `[V, 1]` behind it.
        rollouts: how many are not done.
    """

    pages: list[int]
    logits: torch.Tensor
    rollouts: int


@dataclass(slots=True)
class _Alive:
    """Rollouts in the making, by place; R of them."""

    rows: np.ndarray  # RolloutRow
    own: np.ndarray  # list[int], the pages that are its alone
    groups: np.ndarray
    seeds: np.ndarray
    limits: np.ndarray
    lengths: np.ndarray  # tokens so far
    starts: np.ndarray  # tokens of its prompt
    shared: np.ndarray  # full pages of its prompt
    pages: np.ndarray  # [R, M]
    tokens: np.ndarray  # [R, max_length]
    log_probs: np.ndarray  # [R, max_length]
    seen: np.ndarray  # [R, V], tokens of prompt and response; [R, 0] where nobody asks

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, kept: np.ndarray) -> _Alive:
        return _Alive(*(getattr(self, field.name)[kept] for field in fields(self)))

    def join(self, others: _Alive) -> _Alive:
        return _Alive(
            *(np.concatenate([getattr(self, f.name), getattr(others, f.name)]) for f in fields(self))
        )


class PagedWave:
    """The rollouts of a wave: waiting, alive, ended.

    Args:
        network: the policy's forward pass.
        wave: the rollouts, and how to sample.
        kv_cache_bytes: most bytes of keys and values on this rank; None for no bound.

    Raises:
        ValueError: a single rollout may not fit into `kv_cache_bytes`, or no token may come.
    """

    def __init__(self, network: NativeNetwork, wave: Wave, kv_cache_bytes: int | None) -> None:
        rows, controls = wave.rows, wave.controls
        self.network, self.controls, self.waiting = network, controls, rows
        vocab_size = network.arch.vocab_size
        self.end_strings, self.stops = wave.end_strings, wave.stops
        ends = self.end_strings.eos_ids
        allowed = AllowedTokens(vocab_size, ends, controls.min_length, network.allowed)
        self.prompts: dict[int, _PromptPages] = {}
        prompts = {row.group: row.prompt for row in rows}
        self.rollouts = Counter(row.group for row in rows)
        self.together = _rows_kept_near(rows, network.bytes_per_page)
        self.max_pages = max(pages_of(len(row.prompt.token_ids) + row.limit) for row in rows)
        num_pages = sum(map(_own_pages, rows)) + sum(map(_prompt_pages, prompts.values()))
        if kv_cache_bytes is not None:
            least = max(_own_pages(row) + _prompt_pages(row.prompt) for row in rows)
            if kv_cache_bytes < least * network.bytes_per_page:
                longest = max(len(row.prompt.token_ids) for row in rows)
                raise ValueError(
                    f"model.rs.generation.kv_cache_bytes={kv_cache_bytes} is too little for one rollout: "
                    f"{longest} prompt and {controls.max_length} response tokens need "
                    f"{least * network.bytes_per_page}"
                )
            num_pages = min(num_pages, kv_cache_bytes // network.bytes_per_page)
        longest_run = min(PREFILL_TOKENS, sum(len(prompt.token_ids) for prompt in prompts.values()))
        rows_at_once, logits_at_once = (max(self.together, n) for n in (longest_run, len(prompts)))
        self.session = Session(network, rows_at_once, logits_at_once, num_pages, self.max_pages)
        self.pool = self.session.pool
        self.is_end = np.zeros(vocab_size, dtype=bool)
        self.is_end[list(ends)] = True
        self.chooser = Chooser(self.session, controls, allowed)
        self.alive = self._join([])
        self.batch: TokenBatch | None = None  # of those alive, until they change

    def run(self) -> Iterator[Ended]:
        """Decode to the end, or until it is to stop; each rollout is yielded when it ends."""
        while not self.stops():
            while fresh := self._admit():
                logits = torch.cat([self.prompts[row.group].logits for row in fresh], dim=1)
                joined = self._join(fresh)
                yield from self._choose(joined, _as_tiles(logits))
                self.alive = self.alive.join(joined.keep(self._going))
                self.batch = None
            if not len(self.alive):
                return
            yield from self._choose(self.alive, self._decode())
            if not self._going.all():
                self.alive, self.batch = self.alive.keep(self._going), None

    def _admit(self) -> list[RolloutRow]:
        """Take from the queue what surely fits, if it is worth the while, and run its prompts."""
        fresh: list[RolloutRow] = []
        new: dict[int, Prompt] = {}
        room, free = self.together - len(self.alive), self.pool.num_free
        if len(self.alive) and (room < ADMIT_FROM * self.together or free < ADMIT_FROM * self.pool.size):
            return fresh
        for row in self.waiting[:room]:
            is_new = row.group not in self.prompts and row.group not in new
            free -= _own_pages(row) + is_new * _prompt_pages(row.prompt)
            if free < 0:
                break
            fresh.append(row)
            if is_new:
                new[row.group] = row.prompt
        self.waiting = self.waiting[len(fresh) :]
        if new:
            self._prefill(new)
        return fresh

    def _prefill(self, prompts: dict[int, Prompt]) -> None:
        """Run prompts, one behind the other and cut wherever a pass is full."""
        lengths = [len(prompt.token_ids) for prompt in prompts.values()]
        tokens = np.concatenate([prompt.token_ids for prompt in prompts.values()]).astype(np.int32)
        owners = np.repeat(np.arange(len(prompts)), lengths)
        positions = np.concatenate([np.arange(length) for length in lengths]).astype(np.int32)
        taken = [self.pool.take(pages_of(length)) for length in lengths]
        table = np.zeros((len(prompts), self.max_pages), dtype=np.int32)
        for line, pages in zip(table, taken, strict=True):
            line[: len(pages)] = pages
        is_last = np.append(np.diff(owners) > 0, True)
        logits = []
        for start in range(0, len(tokens), PREFILL_TOKENS):
            part = slice(start, start + PREFILL_TOKENS)
            full_pages = positions[part] // LANES
            batch = TokenBatch(positions[part], table[owners[part]], owners[part], full_pages)
            wanted = np.flatnonzero(is_last[part]).astype(np.int32)
            found = self.session.run(tokens[part], batch, wanted)
            if found.numel():
                logits.append(_as_columns(found, len(wanted)))
        columns = torch.cat(logits, dim=1) if logits else torch.empty(0, len(prompts))
        for number, group in enumerate(prompts):
            self.prompts[group] = _PromptPages(
                taken[number], columns[:, number : number + 1].clone(), self.rollouts[group]
            )

    def _join(self, rows: Sequence[RolloutRow]) -> _Alive:
        """Rollouts that begin: their pages, and what is left of their prompts on a page of their own."""
        count, controls = len(rows), self.controls
        pages = np.zeros((count, self.max_pages), dtype=np.int32)
        own = np.empty(count, dtype=object)
        copies = []
        for i, row in enumerate(rows):
            prompt, shared = self.prompts[row.group].pages, len(row.prompt.token_ids) // LANES
            own[i] = self.pool.take(_own_pages(row))
            pages[i, :shared] = prompt[:shared]
            pages[i, shared : shared + len(own[i])] = own[i]
            if len(prompt) > shared and own[i]:
                copies.append((prompt[shared], own[i][0]))
        if copies:
            self.pool.copy(copies)
        penalized = self.network.arch.vocab_size if controls.repetition_penalty != 1.0 else 0
        seen = np.zeros((count, penalized), dtype=bool)
        for i, row in enumerate(rows):
            if seen.size:
                seen[i, list(row.prompt.token_ids)] = True
        listed = np.empty(count, dtype=object)
        listed[:] = rows
        starts = np.array([len(row.prompt.token_ids) for row in rows], dtype=np.int64)
        return _Alive(
            rows=listed,
            own=own,
            groups=np.array([row.group for row in rows], dtype=np.int64),
            seeds=np.array([row.seed for row in rows], dtype=np.uint64),
            limits=np.array([row.limit for row in rows], dtype=np.int64),
            lengths=np.zeros(count, dtype=np.int64),
            starts=starts,
            shared=starts // LANES,
            pages=pages,
            tokens=np.zeros((count, controls.max_length), dtype=np.int32),
            log_probs=np.zeros((count, controls.max_length), dtype=np.float32),
            seen=seen,
        )

    def _decode(self) -> torch.Tensor:
        """One more token for every rollout: logits behind the newest."""
        alive = self.alive
        if self.batch is None:
            positions = (alive.starts + alive.lengths - 1).astype(np.int32)
            self.batch = TokenBatch(positions, alive.pages, alive.groups, alive.shared)
        else:
            self.batch.positions += 1
        newest = np.ascontiguousarray(alive.tokens[np.arange(len(alive)), alive.lengths - 1])
        return self.session.run(newest, self.batch)

    def _choose(self, alive: _Alive, logits: torch.Tensor) -> Iterator[Ended]:
        """Choose each rollout's next token; yields those that end with it, and notes which go on."""
        tokens, log_probs = self.chooser.choose(logits, alive.seeds, alive.lengths, alive.seen)
        places = np.arange(len(alive))
        alive.tokens[places, alive.lengths] = tokens
        alive.log_probs[places, alive.lengths] = log_probs
        alive.lengths += 1
        if alive.seen.size:
            alive.seen[places, tokens] = True
        stopped = self.is_end[tokens]
        if self.controls.end_strings:
            for i in np.flatnonzero(~stopped & (alive.lengths >= self.controls.min_length)):
                if self.end_strings.may_complete(int(tokens[i])):
                    so_far = alive.tokens[i, : alive.lengths[i]].tolist()
                    stopped[i] = self.end_strings.completed(alive.rows[i].prompt.token_ids, so_far)
        self._going = ~(stopped | (alive.lengths == alive.limits))
        for i in np.flatnonzero(~self._going):
            reason: FinishReason = "stop" if stopped[i] else "length"
            length = alive.lengths[i]
            self._release(alive, i)
            yield (
                alive.rows[i],
                alive.tokens[i, :length].tolist(),
                alive.log_probs[i, :length].tolist(),
                reason,
            )

    def _release(self, alive: _Alive, i: int) -> None:
        """Give back a rollout's pages, and its prompt's with the last."""
        self.pool.give_back(alive.own[i])
        group = int(alive.groups[i])
        prompt = self.prompts[group]
        prompt.rollouts -= 1
        if not prompt.rollouts:
            self.pool.give_back(prompt.pages)
            del self.prompts[group]


def _rows_kept_near(rows: Sequence[RolloutRow], bytes_per_page: int) -> int:
    """How many rollouts to decode together: all, unless many enough stay near the processor."""
    longest = max(pages_of(len(row.prompt.token_ids) + row.limit) for row in rows)
    near = 2 * NEAR_BYTES // (longest * bytes_per_page)  # they are half grown on average
    near -= near % LANES
    return near if LEAST_TOGETHER <= near < len(rows) else len(rows)


def _prompt_pages(prompt: Prompt) -> int:
    return pages_of(len(prompt.token_ids))


def _own_pages(row: RolloutRow) -> int:
    """Pages for all that a rollout may come to keep: its last token's keys are never needed."""
    return pages_of(len(row.prompt.token_ids) % LANES + row.limit - 1)


def _as_columns(tiles: torch.Tensor, count: int) -> torch.Tensor:
    """`[V, count]` of logits in tiles, a copy."""
    return tiles.transpose(0, 1).flatten(1)[:, :count].clone()


def _as_tiles(columns: torch.Tensor) -> torch.Tensor:
    """Tiles of logits `[V, count]`."""
    num_tiles, width, tile = tile_shape(*columns.shape)
    padded = columns.new_zeros(width, num_tiles * tile)
    padded[:, : columns.shape[1]] = columns
    return padded.view(width, num_tiles, tile).transpose(0, 1).contiguous()
