"""A Hugging Face classifier as a judge: its scores are the model's, whatever else is in the batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.judges import ServedJudge, TokenJudge, load_judge, score_rows
from rs_aligner.reward.judges.huggingface import HuggingFaceJudge, _width
from rs_aligner.rollout import Score, ScoreFailure

pytestmark = pytest.mark.timeout(120)

WORDS = ["<pad>", "<unk>", "[CLS]", "[SEP]", *(f"w{i}" for i in range(60))]
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"


def save_tokenizer(folder: Path, *, bert: bool) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bert:
        tokenizer.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")
    if bert:
        fast.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    else:
        fast.chat_template = CHAT
    fast.save_pretrained(folder)


def save_llama(folder: Path, **settings: Any) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=256,
        num_labels=1,
        initializer_range=0.3,
        **sizes,
        **settings,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, bert=False)
    return folder


def save_bert(folder: Path) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
        id2label={0: "bad", 1: "good", 2: "odd"},
        label2id={"bad": 0, "good": 1, "odd": 2},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder, bert=True)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def judge_of(folder: Path, **kwargs: Any) -> HuggingFaceJudge:
    judge = load_judge(JudgeConfig(name="huggingface", kwargs={"folder": str(folder), **kwargs}))
    assert isinstance(judge, HuggingFaceJudge)
    return judge


def words(rng: random.Random, most: int) -> str:
    return " ".join(rng.choice(WORDS[4:]) for _ in range(rng.randint(1, most)))


def score(judge: ServedJudge, prompts: list[str], responses: list[str], rows: Any = None) -> list[float]:
    rows = rows or [{}] * len(prompts)
    scores = score_rows(judge.score_texts, (prompts, responses, rows), max_rows=1000)
    assert all(isinstance(s, Score) for s in scores), scores
    return [s.reward for s in scores if isinstance(s, Score)]


def logits(folder: Path, *texts: Any) -> Any:
    """What the model itself says of one text."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(*texts, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs).logits[0]


def test_the_reward_is_what_the_model_says_of_prompt_and_response(llama: Path) -> None:
    found = score(judge_of(llama), ["w1 w2 "], ["w3"])
    assert found == pytest.approx([logits(llama, "w1 w2 w3").item()], abs=1e-5)
    of_response = score(judge_of(llama, reads="response"), ["w1 w2 "], ["w3"])
    assert of_response == pytest.approx([logits(llama, "w3").item()], abs=1e-5)


def test_messages_go_through_the_judges_own_chat_template(llama: Path) -> None:
    row = {"messages": [{"role": "user", "content": "w1"}]}
    found = score(judge_of(llama), ["<policy's template>w1"], ["w3"], [row])
    assert found == pytest.approx([logits(llama, "user w1 assistant w3 ").item()], abs=1e-5)


def test_the_probability_of_a_class_is_the_reward_and_a_pair_is_told_apart(bert: Path) -> None:
    expected = logits(bert, "w1 w2", "w3").softmax(-1)
    for label, number in (("good", 1), (2, 2)):
        found = score(judge_of(bert, label=label, reads="pair"), ["w1 w2"], ["w3"])
        assert found == pytest.approx([expected[number].item()], abs=1e-6)


@pytest.mark.parametrize("which", ["llama", "bert"])
def test_a_score_depends_on_its_neighbours_in_the_last_bits_at_most(
    which: str, request: pytest.FixtureRequest
) -> None:
    judge = judge_of(request.getfixturevalue(which), **({"label": "good"} if which == "bert" else {}))
    rng = random.Random(0)
    prompts, responses = ([words(rng, 40) + " " for _ in range(60)] for _ in range(2))
    alone = [score(judge, [p], [r])[0] for p, r in zip(prompts, responses, strict=True)]
    together = score(judge, prompts, responses)
    assert np.std(alone) > 0.01, "the model tells texts apart"
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    order = rng.sample(range(60), 60)
    shuffled = score(judge, [prompts[i] for i in order], [responses[i] for i in order])
    np.testing.assert_allclose(shuffled, [alone[i] for i in order], rtol=1e-5, atol=1e-6)


def test_batches_have_one_shape_for_each_width(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = judge_of(llama, batch_size=4)
    shapes: list[tuple[int, ...]] = []
    forward = judge._model.forward

    def spy(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(**inputs)

    monkeypatch.setattr(judge._model, "forward", spy)
    score(judge, [""] * 6, ["w1"] * 5 + ["w1 " * 33])
    assert shapes == [(4, 32), (4, 32), (4, 48)]


def test_widths_grow_by_half_at_most() -> None:
    for length in range(1, 2000):
        assert length <= _width(length, None) <= max(32, 1.5 * length)
    assert len({_width(length, None) for length in range(1, 2000)}) == 13
    assert _width(100, 110) == 110


def test_token_ids_of_the_models_own_tokenizer_are_scored_as_they_are(llama: Path) -> None:
    judge = judge_of(llama)
    assert isinstance(judge, TokenJudge)
    tokens = np.array([[5, 6, 7, 0], [5, 0, 0, 0], [5, 6, 99, 0], [0, 0, 0, 0]], dtype=np.int64)
    values = judge.score_tokens(tokens, np.array([3, 1, 3, 0]))
    assert values[:2] == pytest.approx(score(judge, ["", ""], ["w1 w2 w3", "w1"]), abs=1e-6)
    assert values[2] == ScoreFailure(f"a token id is outside of the judge's vocabulary of {len(WORDS)}")
    assert values[3] == ScoreFailure("the row has no tokens")


def test_a_row_that_is_too_long_has_no_score_and_its_neighbours_do(llama: Path) -> None:
    judge = judge_of(llama, max_length=40)
    scores = score_rows(judge.score_texts, (["", ""], ["w1 " * 41, "w1"], [{}, {}]), max_rows=2)
    assert scores[0] == ScoreFailure("the row has 41 tokens, and the judge takes 40")
    assert isinstance(scores[1], Score)


def test_a_fingerprint_tells_weights_and_settings_apart(llama: Path, tmp_path: Path) -> None:
    same = save_llama(tmp_path / "same")
    other = save_llama(tmp_path / "other", rms_norm_eps=1e-3)
    assert judge_of(same).fingerprint == judge_of(llama).fingerprint
    found = {
        judge_of(llama).fingerprint,
        judge_of(other).fingerprint,
        judge_of(llama, batch_size=4).fingerprint,
    }
    assert len(found) == 3


@pytest.mark.parametrize(
    ("which", "kwargs", "message"),
    [
        ("llama", {"label": "good"}, "the model has one output"),
        (
            "bert",
            {},
            r"label is None: should be one of the model's classes, bad \(0\), good \(1\), odd \(2\)",
        ),
        ("bert", {"label": "great"}, "label is 'great': should be one of"),
        ("llama", {"max_length": 300}, "max_length is 300: the model was made for at most 256"),
        ("llama", {"batch_size": 0}, "batch_size is 0: should be a whole number above 0"),
        ("llama", {"reads": "all"}, "reads is 'all': should be one of"),
        ("llama", {"device": "tpu"}, "device is 'tpu': should be one of"),
        ("llama", {"lable": 1}, "huggingface does not take them: .*'lable'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    which: str, kwargs: dict[str, Any], message: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ValueError, match=rf"judge\.kwargs.*{message}"):
        judge_of(request.getfixturevalue(which), **kwargs)


def test_a_folder_that_holds_no_classifier_is_refused(tmp_path: Path, test_data: Path) -> None:
    with pytest.raises(ValueError, match=r"judge\.kwargs\.folder is .*name a Hugging Face folder"):
        judge_of(tmp_path)
    with pytest.raises(ValueError, match=r"is a LlamaForCausalLM, not a \*ForSequenceClassification"):
        judge_of(test_data / "stories260k")
