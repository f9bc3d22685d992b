"""Writes the table of docs/scaling.md from the plan's own figures.

    python scripts/scaling_page.py

For each model and number of GPUs the nearest settings to the defaults that fit, as `rs-aligner plan` finds
them.
Left out on purpose: the text around the table, which is the page's own and stays.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rs_aligner.commands.fitting import Fit, Room
from rs_aligner.config import TrainRSConfig
from rs_aligner.config.plan_parts import in_gib
from rs_aligner.model.activations import Lengths
from rs_aligner.model.families.registry import read_architecture

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
BEGIN, END = "<!-- Written by scripts/scaling_page.py from here -->", "<!-- to here -->"
GPU = Room("a GPU", 80 * 10**9, True)
GPUS = (1, 8, 64)
TRAINED: dict[str, dict[str, Any]] = {"full": {}, "LoRA": {"model.peft.peft_scheme": "lora"}}
ROW, RESPONSE, PROMPTS = 2048, 1024, 512
"""Tokens of the longest row and of the longest response, and prompts of a step: the default."""

_LLAMA: dict[str, Any] = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8}
MODELS: dict[str, dict[str, Any]] = {
    "1B": {
        **_LLAMA,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "8B": {
        **_LLAMA,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 14336,
    },
    "32B": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "num_key_value_heads": 8,
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "intermediate_size": 27648,
    },
    "70B": {
        **_LLAMA,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "intermediate_size": 28672,
    },
}
"""Sizes as `config.json` has them: those of Llama 3.2 1B, Llama 3.1 8B, Qwen2.5 32B and Llama 3.1 70B."""


class Line(NamedTuple):
    """A line of the table; `overrides` is empty where nothing fits."""

    model: str
    trained: str
    gpus: int
    overrides: tuple[str, ...]
    fit: Fit


def folder_of(model: str, place: Path) -> Path:
    """A folder with a model's `config.json`, for reading its sizes."""
    folder = place / model
    folder.mkdir(parents=True, exist_ok=True)
    made = {"max_position_embeddings": 8192, **MODELS[model]}
    (folder / "config.json").write_text(json.dumps(made))
    (folder / "model.safetensors").touch()
    return folder


def lines() -> Iterator[Line]:
    """Every model on every number of GPUs."""
    with tempfile.TemporaryDirectory() as place:
        for model in MODELS:
            folder = folder_of(model, Path(place))
            for gpus in GPUS:
                for trained, scheme in TRAINED.items():
                    yield _line(model, trained, gpus, folder, scheme)


def fit_of(folder: Path, overrides: Mapping[str, Any]) -> Fit:
    """A run of the table with so many settings."""
    tree: dict[str, Any] = {}
    settings = {
        "exp_manager.explicit_log_dir": "runs/mine",
        "pretrained_checkpoint.restore_from_path": str(folder),
        "model.data.data_prefix.train": "prompts.jsonl",
        "model.rs.length_params.max_length": RESPONSE,
        "model.encoder_seq_length": ROW,
        **overrides,
    }
    for key, value in settings.items():
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = value
    config = TrainRSConfig.model_validate(tree)
    lengths = Lengths(ROW, ROW, RESPONSE, PROMPTS, ROW - RESPONSE)
    return Fit(read_architecture(folder), config, lengths, GPU, on_gpu=True)


def _line(model: str, trained: str, gpus: int, folder: Path, scheme: Mapping[str, Any]) -> Line:
    nodes = {"trainer.devices": min(8, gpus), "trainer.num_nodes": max(1, gpus // 8)}
    layout: dict[str, Any] = {**nodes, **scheme}
    plain = fit_of(folder, layout)
    if plain.fits:
        return Line(model, trained, gpus, _given(layout), plain)
    ways = [dict(one.split("=", 1) for one in settings) for settings in plain.nearest()]
    ways = [way for way in ways if not way.keys() & {"trainer.num_nodes", *TRAINED["LoRA"]}]
    for way in sorted(ways, key=lambda way: any("offload" in key for key in way)):
        settings = [f"{key}={value}" for key, value in way.items()]
        return Line(model, trained, gpus, (*_given(layout), *settings), fit_of(folder, {**layout, **way}))
    return Line(model, trained, gpus, (), plain)


def _given(layout: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in layout.items() if value != 1)


def table() -> Iterator[str]:
    """The lines, as Markdown."""
    yield "| model | trained | GPUs | settings besides the defaults | of a GPU at most | of it the cache |\n"
    yield "|---|---|---|---|---|---|\n"
    for model, trained, gpus, overrides, fit in lines():
        if not overrides and not fit.fits:
            yield f"| {model} | {trained} | {gpus} | does not fit | | |\n"
            continue
        settings = "<br>".join(f"`{one}`" for one in overrides) or "none"
        cache = in_gib(fit.cache_bytes or 0)
        yield f"| {model} | {trained} | {gpus} | {settings} | {in_gib(fit.most)} | {cache} |\n"


def page(text: str) -> str:
    """The page with its table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, _, behind = rest.partition(END)
    return f"{before}{BEGIN}\n\n{''.join(table())}\n{END}{behind}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
