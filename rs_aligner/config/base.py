"""What every part of the config is made of: the section, the value types, the error.

A section is a frozen pydantic model that refuses keys it does not know. The types here say something about
one value. What relates several is told by the narrowest section that has them all, in its `problems`, and
`check` asks every section of a tree. Left out on purpose: what needs torch, such as whether there is a GPU,
and whether a judge answers; both come right after.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from rs_aligner.config.template import PromptTemplate
from rs_aligner.data_folder import data_folder_problem

DATA = "JSON Lines, JSON, parquet or Arrow files, or folders of datasets' save_to_disk"
"""What data files may be."""
FUNCTION = "path/to/file.py:name or package.module:name"
"""How a user's function is named."""


class ConfigError(ValueError):
    """The config cannot run. The message has one line for each problem.

    Attributes:
        problems: the lines, each with the full dotted key, its value and what would work.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def problem(key: str, value: Any, what_would_work: str) -> str:
    """One line of a `ConfigError`."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    if len(shown) > 160:
        shown = shown[:157] + "..."
    return f"{key} is {shown}: {what_would_work}"


def function_problems(key: str, spec: str) -> Iterator[str]:
    """What is wrong with the name of a user's function, as far as it shows without importing it."""
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.isidentifier():
        yield problem(key, spec, f"should be {FUNCTION}")
    elif where.endswith(".py") and not Path(where).is_file():
        yield problem(key, spec, f"there is no such file (relative to {Path.cwd()})")


def file_problems(key: str, file: str | None) -> Iterator[str]:
    """What is wrong if the file that a key names is not there."""
    if file is not None and not Path(file).is_file():
        yield problem(key, file, f"there is no such file (relative to {Path.cwd()})")


def authority_problems(key: str, file: str | None) -> Iterator[str]:
    """What is wrong with a file of certificates that a key names."""
    yield from file_problems(key, file)
    if file is not None and Path(file).is_file():
        try:
            ssl.create_default_context(cafile=file)
        except OSError:  # the errors of ssl, too
            yield problem(key, file, "there are no certificates in it that can be read; should be PEM")


def is_weight(name: str) -> bool:
    """Whether what stands among files is a number, as NeMo has weights before them; `./7` is a file."""
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", name) is not None


def data_problems(key: str, files: Sequence[str]) -> Iterator[str]:
    """What is wrong with the data files that a key names, as far as it shows without reading them."""
    for name in files:
        if not Path(name).exists():
            what: str | None = "is not there"
            if is_weight(name):
                what = (
                    "is a number; weights and files take turns in data_prefix.train, as in [0.3, a.jsonl, "
                    "0.7, b.jsonl], and elsewhere a file that is named twice is read twice"
                )
        else:
            what = data_folder_problem(Path(name)) if Path(name).is_dir() else None
        if what is not None:
            formats = "" if "name one" in what or is_weight(name) else f"; name {DATA}"
            yield problem(key, name, f"{what}{formats} (relative to {Path.cwd()})")


class Section(BaseModel):
    """A part of the config tree. The docstrings under its fields are their documentation (`keys.meaning`)."""

    # A tree is built when it is read: all five cost more to build than an error takes to tell.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        defer_build=True,
    )

    def problems(self, key: str) -> Iterator[str]:
        """What cannot work among the keys of this section and of those below it, a line each.

        Called through `check` for every section of a config whose values are each valid. What has no effect
        is logged as a warning.

        Args:
            key: where the section stands, dotted; empty for a command's whole config.
        """
        return iter(())


def check(section: Section, key: str = "") -> Iterator[str]:
    """The problems of a section and of all below it, the narrowest first; none if it can run.

    Args:
        section: valid as far as each value goes.
        key: where it stands, dotted.
    """
    for name in type(section).model_fields:
        for place, below in _sections_of(getattr(section, name)):
            yield from check(below, ".".join(filter(None, (key, name, place))))
    yield from section.problems(key)


def _sections_of(value: Any) -> Iterator[tuple[str, Section]]:
    """The sections that a key has, each with its place in a list or dict of them."""
    if isinstance(value, Section):
        yield "", value
    elif isinstance(value, tuple | dict):
        places = value.items() if isinstance(value, dict) else enumerate(value)
        yield from ((str(place), one) for place, one in places if isinstance(one, Section))


def _refuse_bool(value: Any) -> Any:
    # To Python `True` is the integer 1; `trainer.devices=true` is a slip all the same.
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _as_tuple(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _tokens(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    tokens = _as_tuple(value)
    if not isinstance(tokens, tuple | list) or not all(isinstance(token, str) and token for token in tokens):
        raise ValueError("should be false, true, or a list of special tokens such as ['<think>', '</think>']")
    return tuple(tokens)


def _seconds(value: Any) -> Any:
    """Seconds of `DD:HH:MM:SS`, the format of NeMo's `max_time_per_run`."""
    if not isinstance(value, str):
        if isinstance(value, int | float):  # true and false, too
            raise ValueError('should be "DD:HH:MM:SS" in quotes, so that YAML reads it as text')
        return value
    parts = value.split(":")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError('should be "DD:HH:MM:SS", for example 00:03:30:00 for three and a half hours')
    days, hours, minutes, seconds = map(int, parts)
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError("should be longer than no time at all; null means no limit")
    return float(total)


_PRECISIONS = {
    "auto": "auto",
    **dict.fromkeys(("bf16", "bf16-mixed", "bf16-true"), "bf16"),
    **dict.fromkeys(("32", "fp32", "32-true"), "fp32"),
}


def _precision(value: Any) -> Any:
    name = str(value).lower()
    if name in ("16", "fp16", "16-mixed", "16-true"):
        raise ValueError("fp16 is not supported (no loss scaling here); use bf16, or 32")
    if name not in _PRECISIONS:
        raise ValueError("should be auto, bf16 or 32")
    return _PRECISIONS[name]


def _template(value: Any) -> Any:
    if isinstance(value, str):
        PromptTemplate(value)
    return value


_Number = BeforeValidator(_refuse_bool)

Count = Annotated[int, _Number, Field(ge=1)]
"""A whole number of things, at least 1."""
Size = Annotated[int, _Number, Field(ge=0)]
"""A whole number of things, 0 included."""
Whole = Annotated[int, _Number]
Port = Annotated[int, _Number, Field(ge=1, le=65535)]
Real = Annotated[float, _Number]
Positive = Annotated[float, _Number, Field(gt=0)]
NotNegative = Annotated[float, _Number, Field(ge=0)]
Fraction = Annotated[float, _Number, Field(gt=0, le=1)]
"""A share: above 0 and at most 1."""
Share = Annotated[float, _Number, Field(ge=0, le=1)]
"""A share that may be nothing: from 0 to 1."""
Beta = Annotated[float, _Number, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), Field(title="text or list of texts")]
"""A text or a list of texts, none of them empty."""
JudgeSpecialTokens = Annotated[
    bool | tuple[Text, ...], BeforeValidator(_tokens), Field(title="true, false or list of tokens")
]
"""False, true, or a list of tokens."""
Template = Annotated[str, BeforeValidator(_template)]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"], BeforeValidator(_precision), Field(title="`auto`, `bf16`, `32`")
]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(title='time, "DD:HH:MM:SS"')]
"""A time span, written `DD:HH:MM:SS`, seconds once read."""
