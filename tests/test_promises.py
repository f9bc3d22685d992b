"""No text says of something that it is to come, unless that is so: such sentences outlive their truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rs_aligner.config import JudgeSource
from rs_aligner.config.upstream import SERVE_REWARD
from rs_aligner.policy.score_ranks import RankSettings

ROOT = Path(__file__).resolve().parents[1]
PLACES = (
    "rs_aligner",
    "examples",
    "docs",
    "scripts",
    "benchmarks",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)
SUFFIXES = {".py", ".md", ".yaml", ".h", ".c", ".cpp", ".sh", ".sbatch"}
PROMISE = re.compile(
    r"\b(not(?: \w+)? yet|yet to|(?:no|not|none|nothing|only)\b[^.]{0,20}\bso far|for now|"
    r"will come\b(?! from)|(?:later|future|next) (?:version|release)|is planned|coming soon|"
    r"one day|at the moment|currently|not implemented|TODO|FIXME|XXX)\b",
    re.IGNORECASE,
)
# Each with why it is true; the text around it, on one line.
TRUE = {
    "a folder that is not there yet": "an option's value, made by the program",
    "it has not answered yet": "a server at the start",
    "A step that is not selected yet": "a state of a step",
    "a step that is not selected yet": "a state of a step",
    'NOT_SELECTED = "not selected yet"': "a state of a step",
    "was not there yet": "a line that was cut short",
    "perhaps it does not exist yet": "a folder before the first save",
}


def texts() -> list[Path]:
    found = [ROOT / place for place in PLACES if (ROOT / place).is_file()]
    for place in PLACES:
        found += [path for path in (ROOT / place).rglob("*") if path.suffix in SUFFIXES]
    return found


def promises(text: str) -> list[tuple[int, str]]:
    """Number and text of each line with a promise that is not known to be true."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        bare = line
        for allowed in TRUE:
            bare = bare.replace(allowed, "")
        if PROMISE.search(bare):
            found.append((number, line.strip()))
    return found


def test_nothing_is_said_to_come_that_is_not_known_to_be_true() -> None:
    assert len(texts()) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in texts()
        for number, line in promises(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_each_sentence_that_is_allowed_stands_somewhere() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in texts())
    assert [sentence for sentence in TRUE if sentence not in everything] == []


@pytest.mark.parametrize(
    "line",
    [
        "serving a reward model is not there yet; set judge.name=exact_answer",
        "This is not yet possible.",
        "LoRA will come with the next release",
        "# TODO: several devices",
        "only Llama is read so far",
        "currently one process",
        "LoRA is not there yet",
    ],
)
def test_a_promise_is_found(line: str) -> None:
    assert promises(line)


@pytest.mark.parametrize(
    "line", ["tokens of the response so far", "the bits come from a counter", "step 3 of 5"]
)
def test_what_is_no_promise_is_left_alone(line: str) -> None:
    assert promises(line) == []


def test_old_keys_of_a_reward_model_lead_to_settings_that_there_are() -> None:
    """What the message of an old key names can be set."""
    reason = SERVE_REWARD.refused["rm_model_file"].reason
    assert "judge.name=megatron_reward_model judge.kwargs.folder=" in reason
    assert "megatron_reward_model" in str(JudgeSource.model_fields["name"].annotation)
    assert (ROOT / "docs" / "models.md").is_file()
    named = {
        match
        for text in SERVE_REWARD.no_effect.values()
        for match in re.findall(r"judge\.kwargs\.(\w+)", text)
    }
    sizes = {"tensor_model_parallel_size", "pipeline_model_parallel_size"}
    assert named == {"batch_size", "accelerator", "precision", *sizes}
    from rs_aligner.reward.judges.megatron import MegatronJudge

    assert named <= set(MegatronJudge.__init__.__annotations__)
    assert {"batch_size", "accelerator", "precision"} <= set(RankSettings.__annotations__)
