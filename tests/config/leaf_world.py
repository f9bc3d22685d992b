"""A world in which every command runs to its end in a moment, and what its parts are given is written down.

The scripts, the config, the data, the loops, the judge's client and the server's scorer are the real ones.
What costs time or needs a network is not there: the model, its optimizer, the decoder, connections to
judges, Triton, and the packages of loggers. In their places stand fakes that note what they receive. `look`
runs a command and returns the notes by name: "rates", "optimizer", "requests" and so on; `leaf_table.py` says
which of them shows the effect of which key.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import trustme
from omegaconf import OmegaConf

from rs_aligner import progress, stopping
from rs_aligner.cli import scripts
from rs_aligner.generation.allowed import check_allowed
from rs_aligner.generation.decoder import Offer
from rs_aligner.generation.sampling import Controls
from rs_aligner.model import runtime
from rs_aligner.model.families.registry import read_architecture
from rs_aligner.model.lora_wanted import spec_of
from rs_aligner.model.runtime import Runtime
from rs_aligner.model.tokenizer import Tokenizer
from rs_aligner.objective import terms as objective_terms
from rs_aligner.policy import pairs, policy, reward_model, sampler, training
from rs_aligner.rollout import Rollout
from rs_aligner.sample_request import SampleRequest
from rs_aligner.trainers.bad_steps import BadSteps
from tests.config.leaf_engine import set_up_engine
from tests.config.leaf_judges import Notes, chance_of, set_up_judges, set_up_server
from tests.config.leaf_reads import READS, note_reads
from tests.config.leaf_rollouts import set_up_rollout_server
from tests.tiny import save_more_tokens, save_tiny_adapter, save_tiny_with_tokenizer

WORDS = ("red", "Red", "dog", "runs")
CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
JUDGES = """
import random

def one(prompts, responses, metadata, scale=1.0):
    return [scale * len(response) for response in responses]

def two(prompts, responses, metadata):
    return [-float(len(response)) for response in responses]

def together(prompts, responses, metadata):
    return [float(len(responses))] * len(responses)

def views(prompts, responses, metadata):
    names = ("reward", "first", "second", "third")
    return [{name: random.Random(name + text).random() for name in names} for text in responses]

def keep_short(prompt, responses, rewards, metadata, most=8):
    return [len(response) <= most for response in responses]

def keep_none(prompt, responses, rewards, metadata):
    return [False] * len(responses)
"""


def make_place(place: Path) -> None:
    """The files that configs of the table name, as `@/name`."""
    save_tiny_with_tokenizer(place / "policy")
    (place / "policy" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    shutil.copytree(place / "policy", place / "other_policy")
    save_more_tokens(shutil.copytree(place / "policy", place / "more_tokens"), 3)
    save_tiny_adapter(place / "adapter", place / "policy")
    texts = [
        "Say",
        "What is red?",
        "Who runs home today?",
        "Blue or red, dog",
        "The end of a long day is",
        "Go",
    ]

    def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    prompts = [
        {"id": f"p{n}", "text": text, "n": n, "right": str(n % 3), "o": n + 50}
        for n, text in enumerate(texts)
    ]
    write("prompts.jsonl", prompts)
    write(
        "held_out.jsonl", [{**row, "id": f"h{n}", "text": f"?{row['text']}"} for n, row in enumerate(prompts)]
    )
    write("failing.jsonl", [{**row, "fails": n in (1, 3)} for n, row in enumerate(prompts)])
    write("more.jsonl", [{**row, "id": f"m{n}", "text": f"!{row['text']}"} for n, row in enumerate(prompts)])
    rows = [
        {"prompt": text, "n": n, "o": n + 50, "response": f"{text[::-1]}."} for n, text in enumerate(texts)
    ]
    write("sft.jsonl", rows)
    write("more_sft.jsonl", [{**row, "response": f"{row['prompt']}!"} for row in rows])
    pairs_ = [
        {"prompt": t, "n": n, "o": n + 50, "chosen": f"{t}.", "rejected": f"no {n}"}
        for n, t in enumerate(texts)
    ]
    write("pairs.jsonl", pairs_)
    write("more_pairs.jsonl", [{**row, "rejected": f"not {row['n']}"} for row in pairs_])
    write("scored.jsonl", [{**row, "responses": ["a", "bb"], "rewards": [row["n"], 0.5]} for row in prompts])
    write("check.jsonl", [{"prompt": "1 + 1 = ", "response": "2"}, {"prompt": "2 + 2 = ", "response": "5"}])
    (place / "token").write_text("a-secret-token-of-the-test\n")
    trustme.CA().cert_pem.write_to_path(place / "authority.pem")
    (place / "judges.py").write_text(JUDGES)


def at_place(value: Any, place: Path) -> Any:
    """The value with `@/` standing for the folder of the files."""
    if isinstance(value, str):
        return value.replace("@/", f"{place}/")
    if isinstance(value, Mapping):
        return {key: at_place(item, place) for key, item in value.items()}
    return [at_place(item, place) for item in value] if isinstance(value, list | tuple) else value


def look(
    command: str, tree: Mapping[str, Any], place: Path, *, again: bool = False, ranks: int = 1
) -> dict[str, Any]:
    """Run what is behind `examples/<command>.py` and its composed config, and return what was written down.

    Args:
        command: the script's name.
        tree: its whole config, nested.
        place: a folder filled by `make_place`; what a run writes goes below `@/out`.
        again: the command has run there before, with the same config.
        ranks: how many ranks `torchrun` says that it started.
    """
    if not again:
        shutil.rmtree(place / "out", ignore_errors=True)
    notes = Notes(place)
    logger = logging.getLogger("rs_aligner")
    before = logger.handlers, logger.propagate, logger.level
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(place):
        _set_up(patch, notes, ranks)
        reads = note_reads(patch)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                logger.handlers, logger.propagate = [notes.handler], False
                getattr(scripts, command)(OmegaConf.create(at_place(tree, place)))
        except SystemExit as error:
            notes.add("status", error.code)
        finally:
            notes.add("threads", os.environ.get("OMP_NUM_THREADS"))
            logger.handlers, logger.propagate, level = before
            logger.setLevel(level)
    notes.add("printed", _without_times(out.getvalue()))
    notes.add("error", err.getvalue())
    for path in sorted((place / "out").rglob("*")):
        notes.add("files", str(path.relative_to(place)))
        if path.name == "metrics.jsonl":
            notes.add("metrics", [_figures(line) for line in path.read_text().splitlines()])
        elif path.suffix == ".jsonl" and path.parent == place / "out":
            notes.add("answers", path.read_text())
    return {**notes.all(), READS: reads}


def _figures(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}


def _without_times(text: str) -> str:
    """What a command printed, without the numbers that the clock decides."""
    return re.sub(r"[\d,.]+ (s|ms|rows a second)\b", r"? \1", text)


class _Clock:
    """Each look at it is a second later."""

    def __init__(self) -> None:
        self.now = itertools.count(1000.0)

    def monotonic(self) -> float:
        return next(self.now)

    time = monotonic


class _Runtime(Runtime):
    """The only rank, without process groups."""

    def gather(self, item: Any) -> list[Any]:
        return [item]

    everyone = gather

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        return values

    def barrier(self) -> None: ...

    def cuda_stand_in(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


# A rank without groups.
ALONE = _Runtime(torch.device("cpu"), 0, 1, 0, 1, 0, 1, 0, 1, None)  # type: ignore[arg-type]  # no group is asked


def _set_up(patch: pytest.MonkeyPatch, notes: Notes, ranks: int) -> None:
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "RS_ALIGNER_JUDGE_TOKEN", "RS_ALIGNER_ROLLOUTS_TOKEN"):
        patch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}.items():
        patch.setenv(name, value)
    patch.setattr("rs_aligner.cli.ranks.log_handler", lambda: notes.handler)
    patch.setattr("rs_aligner.model.folder.Tokenizer", _read_tokenizer)
    patch.setattr(metadata, "version", _version)
    clock = _Clock()
    for module in ("stopping", "trainers.pace"):
        patch.setattr(f"rs_aligner.{module}.time", clock)
    patch.setattr(stopping, "process_started", clock.monotonic)
    _set_up_stops(patch, notes)
    _set_up_ranks(patch, notes)
    _set_up_models(patch, notes)
    set_up_judges(patch, notes)
    set_up_server(patch, notes)
    set_up_rollout_server(patch, notes)
    _set_up_loggers(patch, notes)
    # No key says anything of the model's card, which is read off the run's folder and takes a tenth of a run.
    patch.setattr("rs_aligner.report.live.CardWriter.finalize", lambda *_: None)


def _version(package: str, look_up: Callable[[str], str] = metadata.version) -> str:
    """Looked up once: each time it reads a file of hundreds of lines."""
    if package not in _VERSIONS:
        try:
            _VERSIONS[package] = look_up(package)
        except metadata.PackageNotFoundError as error:
            _VERSIONS[package] = error
    found = _VERSIONS[package]
    if isinstance(found, metadata.PackageNotFoundError):
        raise found
    return found


_VERSIONS: dict[str, str | metadata.PackageNotFoundError] = {}


@cache
def _read_tokenizer(folder: Path) -> Tokenizer:
    """Read once: it takes longer than the rest of a run."""
    return Tokenizer(folder)


def _set_up_stops(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    """When a run stops or ends early."""
    signals, begin = stopping.signals, BadSteps.__init__

    def noted_signals(**how: Any) -> Any:
        notes.add("signals", how)
        return signals(**how)

    def noted_begin(self: BadSteps, folder: Path, most: int, **how: Any) -> None:
        notes.add("bad steps", most)
        begin(self, folder, most, **how)

    patch.setattr(stopping, "signals", noted_signals)
    patch.setattr(BadSteps, "__init__", noted_begin)


def _set_up_ranks(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    @contextlib.contextmanager
    def start(**how: Any) -> Iterator[Runtime]:
        notes.add("ranks", how)
        yield ALONE

    patch.setattr(runtime, "start", start)


def _set_up_models(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    """Models, optimizer, decoder, checkpoints."""
    model = SimpleNamespace(
        config=SimpleNamespace(params_dtype=torch.float32, sequence_parallel=False),
        eval=lambda: None,
        train=lambda: None,
        parameters=list,
        named_parameters=list,
    )

    def load_model(folder: Path, _: Runtime, precision: str, **how: Any) -> sampler.Loaded:
        notes.add("model", folder.name, precision, how)
        arch = read_architecture(folder)
        # A stand-in for the model.
        return sampler.Loaded(model, model.config, arch, torch.float32, folder)  # type: ignore[arg-type]  # a stand-in

    def load_reward_model(folder: Path, _: Runtime, **how: Any) -> Any:
        notes.add("model", folder.name, how)
        return model, replace(read_architecture(folder), value_head=True)

    def optimizer(config: Any, models: Any, *args: Any, **how: Any) -> Any:
        notes.add("optimizer", config, args, how)
        groups: list[dict[str, float]] = [{"wd_mult": 1.0}, {"wd_mult": 0.0}]  # matrices; norms and biases
        return SimpleNamespace(param_groups=groups, config=config, step=lambda: (True, 2.0, 0))

    sample_from_servers = set_up_engine(patch, notes)

    def new_decoder(model: Any, arch: Any, runtime: Any, config: Any, *, allowed: Any, exports: Any) -> Any:
        notes.add("decoder", config.engine)
        if config.is_served:
            sample_from_servers(Offer(model, arch, runtime, config, check_allowed(allowed, arch.vocab_size)))
        return SimpleNamespace(
            is_served=False,
            kv_cache_bytes=config.kv_cache_bytes,
            prepare=lambda version, now: version,
            close=lambda is_over: None,
        )

    def adapters_for(_: Any, arch: Any, __: Runtime, config: Any, folder: Path) -> Any:
        spec = spec_of(config.peft, arch)
        if spec is not None:
            notes.add("adapters", spec, config.peft.restore_from_path)
        return spec and SimpleNamespace(
            spec=spec,
            merge=lambda: None,
            restore=lambda: None,
            merged=contextlib.nullcontext,
            is_exported_alone=config.peft.export == "adapter",
        )

    patch.setattr(sampler, "merge_folder", lambda *given: notes.add("adapters", given[-1].name))
    for module in (policy, reward_model):
        patch.setattr(module, "adapters_for", adapters_for)
    for module in (policy, sampler):
        patch.setattr(module, "load_model", load_model)
    patch.setattr(sampler, "new_decoder", new_decoder)
    patch.setattr(sampler, "generate", partial(_generate, notes))
    patch.setattr(reward_model, "load_reward_model", load_reward_model)
    patch.setattr(reward_model, "SequenceScorer", lambda *args: partial(_score_sequences, notes))
    patch.setattr(training, "get_megatron_optimizer", optimizer)
    patch.setattr(
        training,
        "with_gradients",
        lambda model, *_, **__: SimpleNamespace(module=model, eval=lambda: None, train=lambda: None),
    )

    begin = training.BaseTrainer.__init__

    def noted_begin(self: Any, *args: Any, overlap_grad_reduce: bool, offload: Any, **how: Any) -> None:
        notes.add("overlap", overlap_grad_reduce)
        notes.add("offload", offload)
        begin(self, *args, overlap_grad_reduce=overlap_grad_reduce, offload=offload, **how)

    patch.setattr(training.BaseTrainer, "__init__", noted_begin)

    def step(self: Any, rows: Sequence[Any], *, learning_rate: float, **how: Any) -> Any:
        self.update(learning_rate)
        notes.add("rates", learning_rate)
        notes.add("decay", [group["weight_decay"] for group in self.optimizer.param_groups])
        notes.add("batches", len(rows), how)
        notes.add("rows", rows)
        if isinstance(self, pairs.PairTrainer):
            return pairs.PairStats(1.0, 0.5, 2.0, learning_rate)
        return training.StepStats(1.0, 2.0, learning_rate)

    def terms_of(objective: Any) -> list[Any]:
        notes.add("objective", {**dict(objective), "bounds": objective.bounds})
        return objective_terms.terms_of(objective)

    patch.setattr(training, "terms_of", terms_of)
    patch.setattr(training.Trainer, "step", step)
    patch.setattr(pairs.PairTrainer, "step", step)

    class Start:
        def __init__(self, _: Any, offload: bool) -> None:
            notes.add("starting weights", offload)

        in_place = staticmethod(contextlib.nullcontext)

        def restore(self) -> None:
            notes.add("restart")

    patch.setattr(policy, "StartingWeights", Start)
    patch.setattr(
        policy,
        "response_log_probs",
        lambda _, rows, *more: [tuple(-1.5 for _ in row.response) for row in rows],
    )

    def save(folder: Path, trainer: Any, _: Runtime, state: dict[str, Any], *more: Any) -> None:
        notes.add("saved", folder.name)
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps(state))

    def load(folder: Path, *more: Any) -> dict[str, Any]:
        return dict(json.loads((folder / "state.json").read_text()))

    def export(folder: Path, *args: Any, **_: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        notes.add("exported", folder.name, args[-1])

    patch.setattr("rs_aligner.policy.checkpoint.save", save)
    patch.setattr(
        "rs_aligner.policy.checkpoint.load",
        lambda folder, *_: json.loads((folder / "state.json").read_text()),
    )
    patch.setattr("rs_aligner.model.huggingface.save_weights", export)
    patch.setattr("rs_aligner.policy.trainable.save_adapters", export)


def _generate(
    notes: Notes,
    decoder: Any,
    tokenizer: Any,
    request: SampleRequest,
    *,
    seed: int,
    policy_version: int = 0,
    share: slice,
    stops: Any,
) -> Iterator[Rollout]:
    """Answers that depend on what a rollout's seed comes from, and on the weights."""
    step, how = request.step, {"wave_size": request.wave_size, "kv_cache_bytes": decoder.kv_cache_bytes}
    asked = [(prompt.id, prompt.token_ids) for prompt in request.prompts]
    notes.add("sampled", step, seed, request.first_index, request.num_rollouts, asked, how)
    notes.add("shown", tokenizer.decode([tokenizer.bos_id]))
    notes.add("controls" if step else "held-out controls", Controls.of(request.sampling, request.lengths))
    for group, prompt in list(enumerate(request.prompts))[share]:
        for index in request.indices:
            chance = random.Random(f"{seed} {step} {prompt.position} {index} {policy_version}")
            words = [chance.choice(WORDS) for _ in range(chance.choice((1, 1, 2, 3, 6, 6)))]
            yield Rollout(
                group,
                index,
                token_ids=tuple(10 + WORDS.index(word) for word in words),
                text=f"{' '.join(words)} {len(words) % 3}",
                finish_reason="length" if len(words) == 6 else "stop",
                policy_version=policy_version,
                seed=index,
                log_probs=tuple(-1.0 for _ in words),
            )


def _score_sequences(notes: Notes, sequences: Sequence[Any]) -> list[float]:
    """Rewards that depend on the weights: on how many steps were trained."""
    return [chance_of(tokens, notes.number("rates")) for tokens in sequences]


def _set_up_loggers(patch: pytest.MonkeyPatch, notes: Notes) -> None:
    """TensorBoard's writer, W&B, trackio and MLflow."""

    def module(name: str, **members: Any) -> None:
        found = ModuleType(name)
        vars(found).update(members)
        patch.setitem(sys.modules, name, found)

    def writer(log_dir: str) -> SimpleNamespace:
        notes.add("loggers", Path(log_dir).name)
        adds = dict.fromkeys(("add_scalar", "add_histogram", "add_text"), lambda *_: None)
        return SimpleNamespace(**adds, flush=lambda: None, close=lambda: None)

    def begin(package: str, **how: Any) -> SimpleNamespace:
        told = {
            key: value for key, value in how.items() if key not in ("id", "name", "dir")
        }  # each run its own
        notes.add("loggers", package, told, how["name"].partition("-")[0])
        config = SimpleNamespace(update=lambda *_, **__: None)
        log = lambda values, step: notes.add("loggers", package, sorted(values), step)  # noqa: E731  # one line is enough
        return SimpleNamespace(
            config=config, log=log, define_metric=lambda *_, **__: None, finish=lambda **_: None
        )

    class MlflowClient:
        def __init__(self, tracking_uri: str) -> None:
            notes.add("loggers", Path(tracking_uri).name)

        get_experiment_by_name = create_experiment = log_batch = set_terminated = staticmethod(
            lambda *_, **__: None
        )
        search_runs = staticmethod(lambda *_, **__: [])

        def get_run(self, run_id: str) -> SimpleNamespace:
            return SimpleNamespace(data=SimpleNamespace(params={}))

        def create_run(self, *_: Any, **__: Any) -> SimpleNamespace:
            return SimpleNamespace(info=SimpleNamespace(run_id="one"))

    bars = progress.bars
    patch.setattr(progress, "bars", lambda wanted: notes.add("bars", wanted) or bars(wanted))
    module("torch.utils.tensorboard", SummaryWriter=writer)
    module("torch.utils.tensorboard.summary", hparams=lambda *_: ())
    for package in ("wandb", "trackio"):
        given = {"Histogram": list, "Table": lambda **table: table}
        module(package, init=partial(begin, package), **given)
    module("mlflow", MlflowClient=MlflowClient)
    module("mlflow.entities", Metric=lambda *_: None, Param=lambda key, _: SimpleNamespace(key=key))
