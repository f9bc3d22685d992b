"""What a judge is like before anyone relies on it: `serve_reward.py check=true`.

Scores the same texts in several ways and reports whether the scores differ: alone, in a batch, in another
order, beside a text that is much longer (so that a judge that pads has to), and again. Says whether the
tokenizer and chat template of a policy are the judge's, and how fast the judge is. No server is started; what
the network adds is not in these times.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rs_aligner.answers import kind_of
from rs_aligner.data.chats import check_messages
from rs_aligner.data.rows import read_rows, shown_keys
from rs_aligner.data.shapes import as_prompt, in_our_shape
from rs_aligner.reward.judges import Metadata, ServedJudge, TokenJudge, remarks_of, score_rows
from rs_aligner.reward.judges.functions import AnyRow
from rs_aligner.rollout import Score, ScoreFailure

if TYPE_CHECKING:
    from rs_aligner.config import ServeRewardConfig

Row = tuple[str, str, Metadata]
Scores = list[Score | ScoreFailure]

MOST_ROWS = 64
_READ = {
    "expression": "expressions, compared by value",
    "relation": "inequalities, compared as they are or turned round",
    "equation": "equations, compared but for a factor",
    "interval": "intervals and points, compared with brackets and in order",
    "set": "sets, compared in any order",
    "list": "lists, compared in any order",
    "union": "unions, compared part by part",
    "matrix": "matrices, compared entry by entry",
    "determinant": "determinants, compared entry by entry",
    "text": "texts that are compared word by word",
}
TIMING_SECONDS = 2.0
_SUBJECTS = ("The answer", "A small dog", "Nobody here", "My old friend", "The sea", "Every third number")
_ENDS = (
    "is 42.",
    "runs home, happy.",
    "was lost!",
    "costs $3.50 in all",
    "is not what it seems:\n- one\n- two",
)
_CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]


def check(cfg: ServeRewardConfig, judge: ServedJudge, say: Callable[[str], None]) -> bool:
    """Examine a judge and report, a line at a time.

    Args:
        cfg: the server's config: `check_data` are the rows, `check_policy` is the policy's folder.
        judge: the judge, as it would be served.
        say: prints a line.

    Returns:
        Whether it can be served: it scored something, and the ways agree but for rounding.

    Raises:
        ValueError: a file or folder that cannot be read.
    """
    rows = _rows(cfg.check_data)
    say(f"judge {cfg.judge.function or cfg.judge.name or 'of parts'}, fingerprint {judge.fingerprint}")
    say(f"  takes {'texts and token ids' if isinstance(judge, TokenJudge) else 'texts'}")
    for line in remarks_of(judge):
        say(f"  {line}")
    most = cfg.inference.inference_micro_batch_size
    alone = [score for row in rows for score in _score(judge, [row], most)]
    scored = [score.reward for score in alone if isinstance(score, Score)]
    where = cfg.check_data or "made up; name real ones with check_data=rows.jsonl"
    say(f"rows: {len(rows)} ({where}), {len(scored)} of them scored")
    if not scored:
        say("  no row has a score: " + "; ".join(_reasons(alone)))
        return False
    say(f"  rewards from {min(scored):.6g} to {max(scored):.6g}, mean {math.fsum(scored) / len(scored):.6g}")
    if min(scored) == max(scored):
        say("  <- all the same: what follows would be, too, whatever the judge does; check with other rows")
    for reason in _reasons(alone)[:3]:
        say(f"  without a score: {reason}")
    for line in _references(cfg):
        say(line)
    say("the same rows in other ways, against each row alone:")
    agree = [_compare(name, alone, other, say) for name, other in _ways(judge, rows, most)]
    if cfg.check_policy is not None:
        for line in _policy(cfg, judge, [prompt + response for prompt, response, _ in rows]):
            say(line)
    for line in _speed(judge, rows, most):
        say(line)
    return all(agree)


def _references(cfg: ServeRewardConfig) -> Iterator[str]:
    """How the judges that know the answer read the references of the whole file."""
    sources = {"judge": cfg.judge, **{f"judge.parts.{name}": part for name, part in cfg.judge.parts.items()}}
    for where, source in sources.items():
        if cfg.check_data is not None and source.name == "final_answer":
            key = str(source.kwargs.get("answer_key", "answer"))
            rows = ((place, as_prompt(place, row)) for place, row in _read(cfg.check_data))
            placed = [(place, row[key]) for place, row in rows if row.get(key) is not None]
            yield f"{where} final_answer: {len(placed)} references ({key})"
            found: dict[str, list[tuple[str, str]]] = {}
            for place, reference in placed:
                found.setdefault(kind_of(str(reference)), []).append((place, str(reference)))
            strange = len(placed) - len(found.get("number", []))
            yield f"  {strange} of them are no numbers" + (":" if strange else "")
            for kind, those in sorted(found.items(), key=lambda item: -len(item[1])):
                if kind != "number":
                    example = " ".join(those[0][1].split())
                    shown = example if len(example) <= 60 else f"...{example[-57:]}"
                    yield f"  {len(those)} {_READ.get(kind, kind)}, the first at {those[0][0]}: {shown}"


def _ways(judge: ServedJudge, rows: list[Row], most: int) -> Iterator[tuple[str, Scores]]:
    yield "in a batch", _score(judge, rows, most)
    yield "in a batch, reversed", _score(judge, rows[::-1], most)[::-1]
    longest = max(rows, key=lambda row: len(row[0]) + len(row[1]))
    beside = (longest[0], " ".join([longest[1]] * 4), longest[2])
    yield "beside a text 4 times as long", [_score(judge, [row, beside], most)[0] for row in rows]
    yield "8 times in a batch", [score for row in rows for score in _score(judge, [row] * 8, most)[7:]]
    yield "alone again", [score for row in rows for score in _score(judge, [row], most)]


def _score(judge: ServedJudge, rows: Sequence[Row], most: int) -> Scores:
    prompts, responses, metadata = (list(column) for column in zip(*rows, strict=True))
    return score_rows(judge.score_texts, (prompts, responses, metadata), most)


def _compare(name: str, alone: Scores, other: Scores, say: Callable[[str], None]) -> bool:
    """Report how two ways differ; whether they agree but for rounding."""
    pairs = list(zip(alone, other, strict=True))
    both = [(a.reward, b.reward) for a, b in pairs if isinstance(a, Score) and isinstance(b, Score)]
    one_sided = sum(isinstance(a, Score) != isinstance(b, Score) for a, b in pairs)
    differences = [abs(a - b) for a, b in both if a != b]
    close = all(math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) for a, b in both)
    text = "identical"
    if differences:
        text = f"{len(differences)} of {len(both)} differ, by {max(differences):.2g} at most"
        text += "" if close else "  <- more than rounding"
    if one_sided:
        text += f"; {one_sided} scored in one way only"
    say(f"  {name:<30} {text}")
    return close and not one_sided


def _policy(cfg: ServeRewardConfig, judge: ServedJudge, texts: Sequence[str]) -> Iterator[str]:
    """Whether the policy's tokenizer and chat template are the judge's."""
    assert cfg.check_policy is not None
    own = getattr(judge, "tokenizer_folder", None)
    folder = own or cfg.tokenizer
    yield f"policy {cfg.check_policy}:"
    if folder is None:
        yield "  the judge reads plain text and has no tokenizer: any policy will do, in text mode"
        return
    policy, judges = _tokenizer("check_policy", cfg.check_policy), _tokenizer("tokenizer", folder)
    different = [text for text in texts if policy(text)["input_ids"] != judges(text)["input_ids"]]
    if different:
        yield f"  tokenizer: {len(different)} of {len(texts)} texts have other token ids than in {folder}"
        yield f"    first: {different[0][:60]!r}; " + (
            "let clients send text (remote_rm.mode=text)" if own else "set tokenizer to the policy's folder"
        )
    else:
        yield f"  tokenizer: the same token ids as in {folder} for all {len(texts)} texts"
    templates = [_template(tokenizer) for tokenizer in (policy, judges)]
    if templates[0] == templates[1]:
        yield "  chat template: " + (
            "neither has one" if templates[0] is None else "the same text for a chat"
        )
    else:
        has = [" has none" if template is None else f": {template!r}" for template in templates]
        yield "  chat template: they differ; rows with messages are judged in the judge's own template"
        yield f"    policy{has[0]}"
        yield f"    judge{has[1]}"


def _tokenizer(key: str, folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{key}: no tokenizer could be loaded from {folder}: {error}") from error


def _template(tokenizer: Any) -> str | None:
    """A chat in the tokenizer's template; None without one."""
    if not tokenizer.chat_template:
        return None
    return str(tokenizer.apply_chat_template(_CHAT, tokenize=False, add_generation_prompt=True))


def _speed(judge: ServedJudge, rows: list[Row], most: int) -> Iterator[str]:
    one = _timings(lambda: _score(judge, rows[:1], most))
    batch = [rows[i % len(rows)] for i in range(most)]
    full = _timings(lambda: _score(judge, batch, most))
    yield "speed, without the network:"
    half, slow, together = _at(one, 0.5), _at(one, 0.99), _at(full, 0.5)
    yield f"  1 row: median {half * 1e3:,.2f} ms, 99th percentile {slow * 1e3:,.2f} ms"
    yield f"  {most} rows: median {together * 1e3:,.2f} ms, {most / together:,.0f} rows a second"


def _timings(call: Callable[[], object]) -> list[float]:
    """Seconds of some calls, sorted."""
    times: list[float] = []
    began = time.monotonic()
    while not times or (time.monotonic() - began < TIMING_SECONDS and len(times) < 200):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)


def _at(times: Sequence[float], share: float) -> float:
    return times[min(len(times) - 1, int(share * len(times)))]


def _rows(file: str | None) -> list[Row]:
    """The first rows of a file, or made-up ones of many lengths."""
    if file is None:
        texts = [f"{subject} {end}" for subject in _SUBJECTS for end in _ENDS]
        return [
            (f"Question {i}: ", " ".join(texts[: i % 12 + 1]), AnyRow(id=f"made-up:{i}")) for i in range(24)
        ]
    rows = [_judged(where, row) for where, row in itertools.islice(_read(file), MOST_ROWS)]
    if not rows:
        raise ValueError(f"check_data: {file} has no rows")
    return rows


def _read(file: str) -> Iterator[tuple[str, Metadata]]:
    """The rows of a file with their places; as data files are read, whatever their format."""
    try:
        yield from read_rows([file])
    except ValueError as error:
        raise ValueError(f"check_data: {error}") from None


def _judged(where: str, row: Metadata) -> Row:
    """The prompt where it is a text, the response, what a judge is told; a chat ends with its response."""
    try:
        ours, told = in_our_shape(where, row), as_prompt(where, row)
        if "response" not in ours and "messages" in ours:
            *before, last = check_messages(where, ours["messages"])
            if before and last["role"] == "assistant":
                ours, told = {**ours, "response": last["content"]}, {**told, "messages": before}
    except ValueError as error:
        raise ValueError(f"check_data: {error}") from None
    if not isinstance(ours.get("response"), str):
        raise ValueError(
            f'check_data: {where}: should have a "response" beside its "prompt", or be a chat that ends with '
            f"the assistant's answer; has {shown_keys(row)}"
        )
    return str(ours.get("prompt", ours.get("text", ""))), ours["response"], told


def _reasons(scores: Scores) -> list[str]:
    return list(dict.fromkeys(score.reason for score in scores if isinstance(score, ScoreFailure)))
