"""What lies where a model is looked for, by the names of the files; and what to do where it cannot be read.

Three kinds are read: a Hugging Face folder, a checkpoint of a run, and one of another Megatron program
beside a model's `config.json`. Whatever else people have (a name on the hub, DeepSpeed's checkpoints, GGUF,
an adapter, ...) is told by its name, with the way from there to a folder that is read. Imports nothing
heavy: this is said in the first second. Left out on purpose: what the files hold (`model/architecture.py`,
`tensors.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rs_aligner.files import CHECKPOINT_PART, json_object_if_any
from rs_aligner.megatron_folder import ARCHIVE, BACKEND, LATEST, iterations, megatron_weights
from rs_aligner.peft_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_WEIGHTS_BIN

WANTED = "a Hugging Face folder (config.json, weights, the tokenizer's files) or a checkpoint of a run"
_NAME_IT = f"name {WANTED}"
_HUB_URL = re.compile(r"^(?:https?://(?:huggingface\.co|hf\.co)/|hf://)(?P<name>[\w.-]+/[\w.-]+)")
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_MEGATRON = (
    "convert it to a Hugging Face folder with the tool of the framework that wrote it (for Megatron-LM and "
    "NeMo 2: Megatron Bridge, AutoBridge.export_ckpt), and name that folder"
)
_NEMO = (
    "convert it to a Hugging Face folder with NeMo's own converter (convert_<model>_nemo_to_hf.py in its "
    "scripts/checkpoint_converters, or nemo.collections.llm.export_ckpt), and name that folder"
)
_COPY = "copy config.json and the tokenizer's files into"
_READ_SUFFIXES = (".json", ".jinja", ".model", ".safetensors")
_READ_NAMES = ("merges.txt", "vocab.txt")
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_BIN = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_SUBFOLDERS = 3  # so many are named where a folder above a model is given


def belongs_to_a_model(file: Path) -> bool:
    """Whether a file of a Hugging Face folder is read: config, tokenizer, chat template, weights.

    Weights in PyTorch's own format are read only where there are no safetensors.
    """
    if is_of_weights(file) and file.suffix == ".bin":
        rivals = (*_SAFETENSORS, ADAPTER_WEIGHTS)
        return file.is_file() and not any((file.parent / name).is_file() for name in rivals)
    return file.is_file() and (file.suffix in _READ_SUFFIXES or file.name in _READ_NAMES)


def is_of_weights(file: Path) -> bool:
    """Whether a file of a Hugging Face folder has weights, or says where they are."""
    is_bin = file.suffix == ".bin" and file.name.startswith("pytorch_model")
    named = (*_SAFETENSORS, *_BIN, ADAPTER_WEIGHTS_BIN, BACKEND)
    return is_bin or file.suffix == ".safetensors" or file.name in named


def problem_with(path: str) -> str | None:
    """Why no model can be read from `path`, and what would work; None if it looks like one.

    Args:
        path: what the user named.

    Returns:
        The end of a sentence that begins with the path: "is a file; ...".
    """
    root = Path(path)
    if not root.exists():
        return _absent(path)
    if not root.is_dir():
        return _file(root)
    if (root / CHECKPOINT_PART / "config.json").is_file():
        if any(root.glob("*.distcp")):
            return _base_of_adapters(root)
        return f"is a checkpoint without its weights (*.distcp); {_NAME_IT}"
    names = {found.name for found in root.iterdir()}
    has_weights = not names.isdisjoint((*_SAFETENSORS, *_BIN))
    if has_weights or megatron_weights(root):
        if "config.json" in names and ADAPTER_CONFIG not in names:
            return None
        if not has_weights:
            return (
                f"holds a checkpoint of Megatron's, and no config.json to say of what model; {_beside(root)}"
            )
    return next(text for is_kind, text in _kinds(root, names, has_weights) if is_kind())


def _kinds(root: Path, names: set[str], has_weights: bool) -> list[tuple[Callable[[], bool], str]]:
    """Tests of what a folder is, the telling ones first, each with what to do; the last one always holds."""

    def has(*patterns: str) -> Callable[[], bool]:
        return lambda: any(next(root.glob(pattern), None) is not None for pattern in patterns)

    inside, bins = _models_inside(root), any(root.glob("pytorch_model-*-of-*.bin"))
    is_parts, index = bins or any(root.glob("*-of-*.safetensors")), (_BIN if bins else _SAFETENSORS)[1]
    return [
        (has(ADAPTER_CONFIG), _adapter(root)),
        (
            has("zero_to_fp32.py", "zero_pp_rank_*", "global_step*", "*/zero_pp_rank_*"),
            "holds DeepSpeed's shards; put them together first: `python zero_to_fp32.py . OUT "
            f"--safe_serialization` in that folder, {_COPY} OUT, and name OUT",
        ),
        (
            has("pytorch_model_fsdp_*"),
            "holds FSDP's shards; put them together first: `accelerate merge-weights "
            f"{_first(root, 'pytorch_model_fsdp_*')} OUT` in that folder, {_COPY} OUT, and name OUT",
        ),
        (has("*.gguf"), _gguf(f"holds {_first(root, '*.gguf')}, a GGUF file")),
        (
            has("tf_model*.h5", "flax_model*.msgpack"),
            f"holds weights of TensorFlow or Flax, which are not read; {_NAME_IT}",
        ),
        (
            has("model_config.yaml", "context/model.yaml", "context/io.json", f"*{ARCHIVE}"),
            f"is a checkpoint of NeMo without shards (.metadata, *.distcp), which is not read; {_NEMO}",
        ),
        (
            lambda: root.name == CHECKPOINT_PART and any(root.parent.glob("*.distcp")),
            f"is a part of a checkpoint; name the checkpoint, {root.parent}",
        ),
        (
            lambda: len(iterations(root)) > 1,
            f"holds several of Megatron's checkpoints, and no {LATEST} to choose by; name one of them, such "
            f"as {next(iter(iterations(root)), root)}",
        ),
        (
            has(
                "mp_rank_*", "iter_*", "release", "latest_checkpointed_iteration.txt", "*.distcp", ".metadata"
            ),
            f"is a Megatron checkpoint of another program without shards (.metadata, *.distcp); {_MEGATRON}",
        ),
        (
            has("consolidated*", "params.json"),
            "holds weights in the format of the model's authors (consolidated.*, params.json); use the "
            "Hugging Face version of the model, or transformers' convert_<model>_weights_to_hf.py",
        ),
        (lambda: bool(inside), f"is a folder above a model; name the one that you mean, such as {inside}"),
        (
            lambda: "config.json" not in names and has_weights,
            f"holds weights, but no config.json to say what they are; {_COPY} it",
        ),
        (
            lambda: is_parts and not has_weights,
            f"holds parts of a model without their index, {index}; fetch it, too",
        ),
        (
            lambda: "config.json" not in names and bool(names & {"tokenizer.json", "tokenizer_config.json"}),
            f"holds a tokenizer only, without a model; {_NAME_IT}",
        ),
        (
            has("config.json"),
            f"holds a config.json, but no weights ({_SAFETENSORS[0]}, {_BIN[0]}, or parts with an index); "
            f"{_NAME_IT}",
        ),
        (lambda: not names, f"is an empty folder; {_NAME_IT}"),
        (lambda: True, f"holds neither config.json nor a checkpoint; {_NAME_IT}"),
    ]


def _absent(path: str) -> str:
    url, first = _HUB_URL.match(path), path.split("/", maxsplit=1)[0]
    if url is not None:
        return f"is an address on the Hugging Face hub, and nothing is downloaded here; {_fetch(url['name'])}"
    if path.startswith("~"):
        return f"is not there: ~ stays as it is behind an equals sign; write {Path(path).expanduser()}"
    if _HUB_NAME.match(path) and not Path(first).is_dir():
        return (
            f"is not there (relative paths start at {Path.cwd()}). If it is a name on the Hugging Face hub: "
            f"nothing is downloaded here; {_fetch(path)}"
        )
    return f"is not there; {_NAME_IT}; relative paths start at {Path.cwd()}"


def _fetch(name: str) -> str:
    folder = f"models/{name.split('/')[1]}"
    return f"fetch it first, `hf download {name} --local-dir {folder}`, and name {folder}"


def _beside(place: Path) -> str:
    return f"{_COPY} {place} from the Hugging Face folder of that model, and name {place} again"


def _file(file: Path) -> str:
    if file.suffix == ARCHIVE:
        return (
            "is a .nemo archive, which is read from a folder where the model's config lies beside it: "
            f"`mkdir NEW; ln -s {file.absolute()} NEW`, {_COPY} NEW from the Hugging Face folder of that "
            "model, and name NEW"
        )
    if file.suffix == ".gguf":
        return _gguf("is a GGUF file")
    if file.name == "config.json" or is_of_weights(file) or file.suffix == ".distcp":
        return f"is a file; name its folder, {file.parent}"
    if file.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        return f"is a file in PyTorch's own format, which is not read; {_NAME_IT}"
    return f"is a file; {_NAME_IT}"


def _gguf(what: str) -> str:
    return (
        f"{what}, mostly quantised and made for inference; use the Hugging Face folder that it was made from "
        "(transformers can turn some back: AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=FILE))"
    )


def _adapter(root: Path) -> str:
    base = json_object_if_any(root / ADAPTER_CONFIG).get("base_model_name_or_path") or "its base model"
    return (
        f"holds a PEFT adapter of {base}; name that, and the adapter in model.peft.restore_from_path (with "
        "model.peft.peft_scheme=lora, if it is to be trained), or merge it first: "
        f"python -c \"from peft import AutoPeftModelForCausalLM as M; M.from_pretrained('{root}')"
        ".merge_and_unload().save_pretrained('MERGED')\", copy the tokenizer's files into MERGED, and name "
        "that"
    )


def _base_of_adapters(root: Path) -> str | None:
    """Why the model below a checkpoint's adapters cannot be read; None if it can, or there are none."""
    config = root / CHECKPOINT_PART / ADAPTER_CONFIG
    if not config.is_file():
        return None
    base = str(json_object_if_any(config).get("base_model_name_or_path") or "")
    if (why := problem_with(base)) is None:
        return None
    return (
        f"is a checkpoint of adapters, without the model that they belong to, and {base} {why}. Put that "
        "back where it was, or start from the final/ of that run"
    )


def _first(root: Path, pattern: str) -> str:
    return min((found.name for found in root.glob(pattern)), default="")


def _models_inside(root: Path) -> str:
    """The first folders below with a model: of a run, of the hub's cache, or of models side by side."""
    below = (
        found.parent
        for pattern in ("*/config.json", "*/*/config.json", "*/*/*/config.json")
        for found in sorted(root.glob(pattern))
    )
    models = [str(one.parent if one.name == CHECKPOINT_PART else one) for one in below]
    return ", ".join(list(dict.fromkeys(models))[:_SUBFOLDERS])
