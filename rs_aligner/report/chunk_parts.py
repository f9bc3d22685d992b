"""A file of the ledger as the parts that a page reads: scripts that hand over prompts with their answers.

A page that is opened from a file cannot fetch another, but it can have a script loaded; so each part is one
call with JSON. What models and data wrote is in it as values only, never as a key or as code, and so that no
browser takes it for the end of a script. What is only handed on is not decoded. Log-probabilities are there
in hundredths of a nat, which is what a colour or a tooltip tells; the ledger has them exactly. Left out on
purpose: which files are written, and when (`chunks`).
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np

from rs_aligner.report.viewed_row import ViewedRow
from rs_aligner.rollout import PREFILLED

PART_BYTES = 1_000_000
"""A part ends with the answer that makes it longer; so many bytes are read by a browser in no time."""

_NULL = msgspec.Raw(b"null")
_MOST_SURPRISE = (1 << 16) - 1
_AT_ONCE = 32  # rows

_encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, omit_defaults=True, gc=False):
    """One rollout in a part.

    Attributes:
        index, ended, version, seed, kept, reason, score, watched, judge, by_design: as in the ledger.
        text, failure, watched_failure, ids: the same, as they stand there.
        length: how many tokens.
        components: in the order of the part's names, None for one that it has not.
        surprise: each token's log-probability, negative, in hundredths of a nat: 16 bits each, as base64.
    """

    index: int
    text: msgspec.Raw
    ids: msgspec.Raw
    reason: str
    ended: str
    version: int
    length: int
    seed: str  # a number of 64 bits, more than JavaScript counts to
    kept: bool = False
    score: float | None = None
    components: list[float | None] = []
    watched: float | None = None
    failure: msgspec.Raw | None = None
    watched_failure: msgspec.Raw | None = None
    judge: str = ""
    by_design: bool = True
    surprise: bytes = b""


class Message(msgspec.Struct):
    """A turn of a chat."""

    role: str
    text: str


class PromptHead(msgspec.Struct, omit_defaults=True):
    """A prompt in a part; `row` is its data row as JSON, `chat` its turns where the row has a chat."""

    group: int
    id: str
    text: msgspec.Raw
    ids: msgspec.Raw
    row: str
    chat: list[Message] = []
    prefilled: str = ""


class GroupPlace(msgspec.Struct, array_like=True):
    """Where in the parts of a file a prompt's answers are, and how many of them."""

    id: str
    part: int
    group: int
    size: int


class Summary(msgspec.Struct):
    """What a page says of a file before it has read its parts, and where its prompts are.

    Attributes:
        rollouts, kept, failed, prompts: how many.
        low, high, total: of the scores; None and 0 where there are none.
        reasons: how many rollouts became what for each reason.
        components: names of the scores' parts, sorted.
        watched: whether a second judge looked on.
        sizes: bytes of each part.
        places: of the groups.
    """

    rollouts: int = 0
    kept: int = 0
    failed: int = 0
    prompts: int = 0
    low: float | None = None
    high: float | None = None
    total: float = 0.0
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    components: list[str] = msgspec.field(default_factory=list)
    watched: bool = False
    sizes: list[int] = msgspec.field(default_factory=list)
    places: list[GroupPlace] = msgspec.field(default_factory=list)


class PartWriter:
    """Makes the parts of a file, one in memory at a time.

    Args:
        head: what every part says of itself besides its number and its content.
        limit: bytes after which a part ends.

    Attributes:
        summary: of what went through; whole when `parts` has ended.
    """

    def __init__(self, head: dict[str, Any], limit: int = PART_BYTES) -> None:
        self.summary, self._head, self._limit = Summary(), head, limit
        self._names: list[str] = []
        self._reasons: Counter[str] = Counter()
        self._group = -1
        self._prompts: list[tuple[bytes, list[bytes]]] = []
        self._size = 0

    def parts(self, rows: Iterable[ViewedRow]) -> Iterator[bytes]:
        """The parts, each a whole script.

        Raises:
            ValueError: as whoever hands the rows in raises it.
        """
        for row, surprise in _with_surprise(rows):
            if row.group != self._group and self._size > self._limit:  # a prompt stays whole
                yield self._part()
            self._add(row, surprise)
            if self._size > 2 * self._limit:  # unless its answers are a part by themselves
                yield self._part()
        if self._prompts or not self.summary.sizes:
            yield self._part()
        self.summary.reasons = dict(sorted(self._reasons.items()))
        self.summary.components = sorted(self._names)

    def _add(self, row: ViewedRow, surprise: bytes) -> None:
        summary, part = self.summary, len(self.summary.sizes)
        is_new = row.group != self._group
        if is_new or not self._prompts:
            head = _encode(_prompt_head(row))
            self._prompts.append((head, []))
            self._size += len(head)
            summary.places.append(GroupPlace(row.prompt_id, part, row.group, 0))
        summary.prompts += is_new
        self._group = row.group
        answer = _encode(self._answer(row, surprise))
        self._prompts[-1][1].append(answer)
        self._size += len(answer)
        summary.places[-1].size += 1
        self._count(row)

    def _count(self, row: ViewedRow) -> None:
        summary = self.summary
        summary.rollouts += 1
        summary.kept += row.kept
        self._reasons[row.reason] += 1
        summary.watched |= row.watched is not None or row.watched_failure != _NULL
        if row.reward is None:
            summary.failed += 1
            return
        summary.total += row.reward
        summary.low = row.reward if summary.low is None else min(summary.low, row.reward)
        summary.high = row.reward if summary.high is None else max(summary.high, row.reward)

    def _answer(self, row: ViewedRow, surprise: bytes) -> Answer:
        if row.components.keys() - set(self._names):
            self._names += [name for name in row.components if name not in self._names]
        return Answer(
            index=row.index,
            text=row.response,
            ids=row.token_ids,
            reason=row.reason,
            ended=row.finish_reason,
            version=row.policy_version,
            length=_length(row.token_ids),
            seed=str(row.seed),
            kept=row.kept,
            score=row.reward,
            components=[row.components.get(name) for name in self._names] if row.components else [],
            watched=row.watched,
            failure=_or_none(row.failure),
            watched_failure=_or_none(row.watched_failure),
            judge=row.judge,
            by_design=row.by_design,
            surprise=surprise,
        )

    def _part(self) -> bytes:
        head = {**self._head, "part": len(self.summary.sizes), "components": self._names}
        prompts = b",".join(
            prompt[:-1] + b',"answers":[' + b",".join(answers) + b"]}" for prompt, answers in self._prompts
        )
        content = script("add", _encode(head)[:-1] + b',"prompts":[' + prompts + b"]}")
        self._prompts, self._size = [], 0
        self.summary.sizes.append(len(content))
        return content


def script(function: str, content: bytes) -> bytes:
    """JSON as a script that hands it to one of the viewer's functions; see `viewer_data.js`."""
    return b"rsRollouts." + function.encode() + b"(" + in_script(content) + b");\n"


def in_script(content: bytes) -> bytes:
    """JSON in which nothing is the end of a script, whatever a model wrote, nor of a line of one."""
    escaped = content.replace(b"<", b"\\u003c")
    return escaped.replace("\u2028".encode(), b"\\u2028").replace("\u2029".encode(), b"\\u2029")


def _length(array: msgspec.Raw) -> int:
    """How many numbers an array of JSON has."""
    content = bytes(array)
    return content.count(b",") + 1 if len(content) > len(b"[]") else 0


def _or_none(value: msgspec.Raw) -> msgspec.Raw | None:
    return None if value == _NULL else value


def _with_surprise(rows: Iterable[ViewedRow]) -> Iterator[tuple[ViewedRow, bytes]]:
    """Each row with its `Answer.surprise`; those of several are computed at once, since each is short."""
    waiting = iter(rows)
    while batch := list(itertools.islice(waiting, _AT_ONCE)):
        log_probs = array("d")
        for row in batch:
            log_probs.extend(row.log_probs)
        hundredths = np.rint(np.frombuffer(log_probs) * -100) if log_probs else np.zeros(0)
        surprise = np.clip(hundredths, 0, _MOST_SURPRISE).astype("<u2").tobytes()
        end = 0
        for row in batch:
            begin, end = end, end + 2 * len(row.log_probs)
            yield row, surprise[begin:end]


def _prompt_head(row: ViewedRow) -> PromptHead:
    metadata = json.loads(bytes(row.metadata))
    prefilled = metadata.get(PREFILLED)
    return PromptHead(
        group=row.group,
        id=row.prompt_id,
        text=row.prompt,
        ids=row.prompt_token_ids,
        row=msgspec.json.format(bytes(row.metadata), indent=1).decode(),
        chat=_chat(metadata, json.loads(bytes(row.prompt))),
        prefilled=prefilled if isinstance(prefilled, str) else "",
    )


def _chat(metadata: dict[str, Any], prompt: str) -> list[Message]:
    """The turns of the row's chat, if the prompt was made of it and not by another template."""
    messages = metadata.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return []
    turns = [Message(str(message.get("role", "")), _text_of(message)) for message in messages]
    said = [turn.text.strip() for turn in turns if turn.role == "user"]
    return turns if said and said[-1] in prompt else []


def _text_of(message: dict[str, Any]) -> str:
    """What a turn says, whatever its form; what calls tools is shown as it is written in the row."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [str(part.get("text", "")) if isinstance(part, dict) else str(part or "") for part in parts]
    more = {key: message[key] for key in ("reasoning_content", "tool_calls") if message.get(key)}
    if more:
        texts.append(json.dumps(more, ensure_ascii=False, indent=1))
    return "\n".join(texts)
