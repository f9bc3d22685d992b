"""A judge that is a Hugging Face sequence classifier or regressor, from a local folder.

Texts go through the judge's own tokenizer, and through its chat template where the data row has `messages`.
A batch always has the same number of rows, and a width that depends on the row alone (its length, rounded up
to a few sizes): matrix products change in the last bits with their shape, so a text's score would otherwise
depend on which texts came with it. Empty places are filled up, at the cost of some work.

Left out on purpose: several devices (a Megatron reward model has them), and cutting long texts: a row that is
too long has no score.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rs_aligner.data.chats import answered, tools_of
from rs_aligner.model_folder import problem_with
from rs_aligner.reward.judges.base import Metadata, Tokens, Value, content_hash
from rs_aligner.rollout import ScoreFailure
from rs_aligner.threads import threads_of
from rs_aligner.users_code import describe

_HEAD = "ForSequenceClassification"
_NARROWEST = 32


class HuggingFaceJudge:
    """A `*ForSequenceClassification` model.

    Args:
        folder: its Hugging Face folder, with weights and tokenizer.
        label: name or number of the class whose probability is the reward; None for a model with one output,
            which is the reward itself.
        reads: what the model is shown: the prompt with the response behind it, the two as a pair (as BERT
            tells them apart), or the response alone.
        batch_size: rows of every batch.
        max_length: most tokens of a row; None for as many as the model was made for.
        precision: `fp32`, `bf16`, or `auto` (bf16 on a GPU).
        device: `cpu`, `cuda`, or `auto` (a GPU where there is one).
        threads: torch threads on a CPU; None: the cores that the process may use.

    Raises:
        ValueError: the folder holds no such model, or a setting that does not fit it.
    """

    def __init__(
        self,
        folder: str,
        *,
        label: str | int | None = None,
        reads: Literal["prompt_and_response", "pair", "response"] = "prompt_and_response",
        batch_size: int = 8,
        max_length: int | None = None,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        threads: int | None = None,
    ) -> None:
        _check("reads", reads, ("prompt_and_response", "pair", "response"))
        _check("precision", precision, ("auto", "fp32", "bf16"))
        _check("device", device, ("auto", "cpu", "cuda"))
        for key, value in (("batch_size", batch_size), ("max_length", max_length), ("threads", threads)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"judge.kwargs.{key} is {value!r}: should be a whole number above 0")
        _check_folder(folder)
        path = Path(folder)
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self._torch = torch
        self._threads = threads_of(threads, ranks=1).most
        self._device = _device(device, has_gpu=torch.cuda.is_available())
        bf16 = precision == "bf16" or (precision == "auto" and self._device == "cuda")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = AutoModelForSequenceClassification.from_pretrained(
                path, local_files_only=True, dtype=torch.bfloat16 if bf16 else torch.float32
            )
        except Exception as error:  # transformers raises whatever its parsers raise
            raise ValueError(f"judge.kwargs.folder: {folder} cannot be loaded: {describe(error)}") from error
        self._model = model.to(self._device).eval()
        self._label = _label(label, model.config)
        self._pad = _padding(model.config, self._tokenizer)
        self._reads, self._rows = reads, batch_size
        made_for = _positions(model.config)
        if max_length is not None and made_for is not None and max_length > made_for:
            raise ValueError(
                f"judge.kwargs.max_length is {max_length}: the model was made for at most {made_for} tokens"
            )
        self._longest = max_length or made_for
        self.tokenizer_folder = str(path)
        files = sorted(file for file in path.iterdir() if file.is_file())
        settings = [label, reads, batch_size, max_length, "bf16" if bf16 else "fp32"]
        self.fingerprint = content_hash("huggingface", settings, *files)
        self._rewards([[0] * min(_NARROWEST, self._longest or _NARROWEST)])  # ready means ready to score

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """The reward of each response."""
        rows = zip(prompts, responses, metadata, strict=True)
        encoded = [self._encode(prompt, response, row) for prompt, response, row in rows]
        return self._score([ids for ids, _ in encoded], [types for _, types in encoded])

    def score_tokens(self, tokens: Tokens, lengths: Tokens) -> Sequence[Value]:
        """The reward of token ids of the model's own tokenizer."""
        rows = [row[:length].tolist() for row, length in zip(tokens, lengths.tolist(), strict=True)]
        return self._score(rows, [None] * len(rows))

    def close(self) -> None:
        """The weights go with the judge."""

    def _encode(self, prompt: str, response: str, row: Metadata) -> tuple[list[int], list[int] | None]:
        """Token ids, and for a pair which of the two texts each belongs to."""
        messages = row.get("messages")
        if self._reads == "pair":
            encoded = self._tokenizer(prompt, response)
            return encoded["input_ids"], encoded.get("token_type_ids")
        if self._reads == "response":
            text = response
        elif isinstance(messages, list) and self._tokenizer.chat_template:
            chat, tools = answered("the row", row, response), tools_of("the row", row)
            text = self._tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
            return self._tokenizer(text, add_special_tokens=False)["input_ids"], None
        else:
            text = prompt + response
        return self._tokenizer(text)["input_ids"], None

    def _score(self, rows: list[list[int]], types: list[list[int] | None]) -> list[Value]:
        problems = [self._problem(row) for row in rows]
        by_width: dict[int, list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            if problems[place] is None:
                by_width[_width(len(row), self._longest)].append(place)
        values: list[Value] = [ScoreFailure(problem or "") for problem in problems]
        for places in by_width.values():
            for start in range(0, len(places), self._rows):
                batch = places[start : start + self._rows]
                found = self._rewards([rows[i] for i in batch], [types[i] for i in batch])
                for place, reward in zip(batch, found, strict=True):
                    values[place] = reward
        return values

    def _rewards(self, rows: list[list[int]], types: list[list[int] | None] | None = None) -> list[float]:
        """One batch, filled up to its fixed shape; rows are of one width."""
        torch, width = self._torch, _width(max(map(len, rows)), self._longest)
        ids = torch.full((self._rows, width), self._pad, dtype=torch.long)
        mask = torch.zeros((self._rows, width), dtype=torch.long)
        kinds = torch.zeros((self._rows, width), dtype=torch.long)
        for i in range(self._rows):
            row = rows[min(i, len(rows) - 1)]  # empty places repeat the last row
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            if types is not None and (kind := types[min(i, len(rows) - 1)]) is not None:
                kinds[i, : len(kind)] = torch.tensor(kind)
        inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        if self._reads == "pair" and "token_type_ids" in self._tokenizer.model_input_names:
            inputs["token_type_ids"] = kinds.to(self._device)
        with self._own_threads(), torch.inference_mode():
            logits = self._model(**inputs).logits[: len(rows)].float()
        if self._label is None:
            return [float(value) for value in logits[:, 0].tolist()]
        return [float(value) for value in logits.softmax(-1)[:, self._label].tolist()]

    @contextmanager
    def _own_threads(self) -> Iterator[None]:
        """Torch uses this judge's threads inside; a policy in the same process has its own."""
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)

    def _problem(self, row: list[int]) -> str | None:
        """Why a row cannot be scored, None if it can."""
        vocabulary = self._model.config.vocab_size
        if not row:
            return "the row has no tokens"
        if self._longest is not None and len(row) > self._longest:
            return f"the row has {len(row)} tokens, and the judge takes {self._longest}"
        if min(row) < 0 or max(row) >= vocabulary:
            return f"a token id is outside of the judge's vocabulary of {vocabulary}"
        return None


def _width(length: int, longest: int | None) -> int:
    """32, 48, 64, 96, 128, ...: at most half as much again as the row needs."""
    width = _NARROWEST
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, longest) if longest is not None else width


def _check(key: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"judge.kwargs.{key} is {value!r}: should be one of {', '.join(allowed)}")


def _check_folder(folder: str) -> None:
    if (problem := problem_with(folder)) is not None:
        raise ValueError(f"judge.kwargs.folder is {folder!r}: {problem}")
    try:
        heads = json.loads((Path(folder) / "config.json").read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        raise ValueError(f"judge.kwargs.folder: {folder} has no config.json that can be read") from None
    if not any(str(head).endswith(_HEAD) for head in heads):
        raise ValueError(
            f"judge.kwargs.folder: {folder} is a {', '.join(heads) or 'model without a head'}, not a *{_HEAD}"
        )


def _device(wanted: str, *, has_gpu: bool) -> str:
    if wanted == "cuda" and not has_gpu:
        raise ValueError("judge.kwargs.device is 'cuda': there is no GPU; set it to cpu or auto")
    return "cuda" if has_gpu and wanted != "cpu" else "cpu"


def _label(label: str | int | None, config: Any) -> int | None:
    """The number of the class whose probability is wanted; None for a model with one output."""
    names = {int(number): name for number, name in (config.id2label or {}).items()}
    if config.num_labels == 1:
        if label is not None:
            raise ValueError(f"judge.kwargs.label is {label!r}: the model has one output, leave it out")
        return None
    for number in range(config.num_labels):
        if label in (number, names.get(number)) and not isinstance(label, bool) and label is not None:
            return number
    raise ValueError(
        f"judge.kwargs.label is {label!r}: should be one of the model's classes, "
        + ", ".join(f"{names.get(number, '')} ({number})" for number in range(config.num_labels))
    )


def _padding(config: Any, tokenizer: Any) -> int:
    """The padding token; models that find a row's last token by it need to know it."""
    known = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    padding = int(next((token for token in known if token is not None), 0))
    config.pad_token_id = padding
    return padding


def _positions(config: Any) -> int | None:
    value = getattr(config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None
