"""Selectors that look at what else is there: duplicates, near-duplicates, distinct answers, diversity.

Of those that are alike the best is kept, the lower index of equally good ones. Left out on purpose:
comparisons between different prompts.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Literal

from rs_aligner.answers import final_answer
from rs_aligner.rollout import Group, Prompt, Rollout
from rs_aligner.selection.base import GroupSelector, Places, Progress, best_first
from rs_aligner.selection.likeness import edit_likeness, edit_likeness_at_most, jaccard, ngrams, normalised


class AtMost(GroupSelector):
    """Keeps the `k` best of all that have the same key."""

    def __init__(self, k: int) -> None:
        self.k = k

    @abstractmethod
    def key(self, text: str) -> str | None:
        """What rollouts have in common that count as the same."""

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """The best of each kind."""
        seen: Counter[str | None] = Counter()
        kept = []
        for place in best_first(group, left):
            key = self.key(group.rollouts[place].text)
            seen[key] += 1
            if seen[key] <= self.k:
                kept.append(place)
        return kept


class Duplicates(AtMost):
    """Rejects a response that is there twice, or that was trained on at an earlier step.

    Args:
        normalised: whether texts are compared without case and by words (`likeness.normalised`) instead of
            character by character.
        against: `group` compares the rollouts of a prompt with each other, `earlier` with those that were
            kept of the same prompt at earlier steps, `both` with both. Prompts are the same by their row, or
            by their id where they have none. A rollout that a pool brings again is no duplicate of itself.
    """

    reason = "duplicate"

    def __init__(self, *, normalised: bool, against: Literal["group", "earlier", "both"]) -> None:
        super().__init__(k=1)
        self.normalised, self.against = normalised, against
        self.remembers = against != "group"
        self._earlier: defaultdict[int | str, dict[bytes, tuple[int, int]]] = defaultdict(dict)

    def key(self, text: str) -> str:
        """The text itself, or what is left of it."""
        return normalised(text) if self.normalised else text

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What is new."""
        if self.against != "group":
            earlier = self._earlier.get(_same(group.prompt), {})
            left = [place for place in left if not self._is_in(earlier, group.rollouts[place])]
        return left if self.against == "earlier" else super().of_group(group, left, progress)

    def remember(self, group: Group, place: int) -> None:
        """Take note of what was trained on."""
        if self.remembers:
            rollout = group.rollouts[place]
            self._earlier[_same(group.prompt)].setdefault(self._digest(rollout), _identity(rollout))

    def _is_in(self, earlier: Mapping[bytes, tuple[int, int]], rollout: Rollout) -> bool:
        return earlier.get(self._digest(rollout), _identity(rollout)) != _identity(rollout)

    def _digest(self, rollout: Rollout) -> bytes:
        # 16 bytes a response instead of its text, since a run has millions of them. Half of a surrogate pair
        # is no valid text, but a model may write it.
        return blake2b(self.key(rollout.text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _identity(rollout: Rollout) -> tuple[int, int]:
    """Which of its prompt's rollouts it is, over all steps."""
    return rollout.policy_version, rollout.index


class DistinctAnswers(AtMost):
    """Rejects more than `k` responses that come to the same final answer.

    The answer is that of the verifiers (`answers/`), or what a pattern's group holds at its last
    match. Responses in which the pattern does not match have one answer together: none.

    Args:
        k: how many of each answer stay at most.
        pattern: a regular expression with one group; None for the verifiers' answer.
    """

    reason = "answer kept often enough"

    def __init__(self, k: int, pattern: str | None) -> None:
        super().__init__(k)
        self._pattern = None if pattern is None else re.compile(pattern)

    def key(self, text: str) -> str | None:
        """The final answer."""
        if self._pattern is None:
            return final_answer(text)
        answers = [match[1] for match in self._pattern.finditer(text)]
        return " ".join(answers[-1].split()) if answers and answers[-1] is not None else None


class NearDuplicates(GroupSelector):
    """Rejects a response that is much like a better one of its group which stays.

    Greedy, from the best down, so two that stay are never too much alike.

    Args:
        similarity: from which likeness on two responses are too much alike, above 0 and at most 1.
        measure: `ngram` is the share of distinct token n-grams that both have of those that either has
            (Jaccard); `edit` is 1 less the edit distance in tokens over the longer one's length.
        n: tokens of an n-gram.
    """

    reason = "near-duplicate"

    def __init__(self, similarity: float, measure: Literal["ngram", "edit"], n: int) -> None:
        self.similarity, self.measure, self.n = similarity, measure, n

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """What is unlike all that is better and stays."""
        alike = self._by_ngrams(group, left) if self.measure == "ngram" else self._by_edits(group, left)
        kept: list[int] = []
        for place in best_first(group, left):
            if not any(alike(place, other) for other in kept):
                kept.append(place)
        return kept

    def _by_ngrams(self, group: Group, left: Places) -> Callable[[int, int], bool]:
        grams = {place: ngrams(group.rollouts[place].token_ids, self.n) for place in left}
        return lambda a, b: jaccard(grams[a], grams[b]) >= self.similarity

    def _by_edits(self, group: Group, left: Places) -> Callable[[int, int], bool]:
        tokens = {place: group.rollouts[place].token_ids for place in left}
        times: dict[int, Counter[int]] = {place: Counter(tokens[place]) for place in left}

        def alike(a: int, b: int) -> bool:
            return (
                edit_likeness_at_most(times[a], times[b]) >= self.similarity  # most pairs fail here already
                and edit_likeness(tokens[a], tokens[b]) >= self.similarity
            )

        return alike


class Diverse(GroupSelector):
    """The `k` responses of a group that differ most from each other.

    Greedy farthest-first (Gonzalez, 1985): the best reward, then again and again the one whose nearest
    neighbour among those chosen is farthest away, by the share of token n-grams that two do not have in
    common (Jaccard distance). Ties go to the better reward, then to the lower index.
    """

    reason = "not among the most different"

    def __init__(self, k: int, n: int) -> None:
        self.k, self.n = k, n

    def of_group(self, group: Group, left: Places, progress: Progress) -> Places:
        """The most different ones."""
        waiting = best_first(group, left)
        grams = {place: ngrams(group.rollouts[place].token_ids, self.n) for place in left}
        nearest = dict.fromkeys(waiting, 2.0)  # farther than any distance: the first of the list is the first
        chosen: list[int] = []
        while waiting and len(chosen) < self.k:
            farthest = max(waiting, key=nearest.__getitem__)  # the first of equals, which is the best
            waiting.remove(farthest)
            chosen.append(farthest)
            for place in waiting:
                nearest[place] = min(nearest[place], 1 - jaccard(grams[place], grams[farthest]))
        return chosen


def _same(prompt: Prompt) -> int | str:
    """What two prompts have in common that are the same at different steps."""
    return prompt.row if prompt.row >= 0 else prompt.id
