"""From a checked config to tokenizer and policy: what the scripts and `rs_aligner.train` share.

Each function imports what it needs, so that what can be wrong comes to light before anything slow is loaded.
Left out on purpose: reading the config (`config`), the loops, and starting ranks and making loggers
(`cli`, which knows Hydra).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rs_aligner import stopping
from rs_aligner.config import (
    GenerateConfig,
    RSConfig,
    SamplingParams,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
)
from rs_aligner.harmless import one_line
from rs_aligner.record.room import check_open_files, check_writable
from rs_aligner.schedule import learning_rate
from rs_aligner.threads import Threads, threads_of

if TYPE_CHECKING:
    from rs_aligner.model.runtime import Runtime
    from rs_aligner.model.tokenizer import Tokenizer
    from rs_aligner.policy.policy import MegatronPolicy
    from rs_aligner.policy.reward_model import MegatronRewardModel
    from rs_aligner.policy.sampler import Sampler
    from rs_aligner.policy.trainable import Optimization
    from rs_aligner.record.run import Run
    from rs_aligner.record.sinks import Logger

_logger = logging.getLogger("rs_aligner")


def threads(config: TrainConfig | GenerateConfig) -> Threads:
    """A rank's threads on a CPU: as configured, or its share of the cores that the process may use.

    A program that has told torch how many it may use, before `rs_aligner.train`, is heeded.
    """
    found = threads_of(config.trainer.threads, config.trainer.devices)
    torch = sys.modules.get("torch")  # not imported for this: the number has to be known before
    if torch is not None and not found.chosen and torch.get_num_threads() < found.most:
        return replace(found, most=torch.get_num_threads(), reason="torch.get_num_threads()")
    return found


def log_handler() -> logging.Handler:
    """Shows the package's log lines on the standard output, with the time of day."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Lines("%(asctime)s  %(message)s", "%H:%M:%S"))
    return handler


class _Lines(logging.Formatter):
    """Log lines in which nothing acts on a terminal: what a judge or a model has said may be in them."""

    def format(self, record: logging.LogRecord) -> str:
        """The record, with controls as pictures of them."""
        lines = super().format(record).split("\n")
        return "\n".join(one_line(line, len(line)) for line in lines)


def say(what: str) -> None:
    """Tell what takes a while; only the first rank shows it."""
    _logger.info(what)


def open_loggers(config: TrainConfig, run: Run, further: Callable[[], Sequence[Logger]] = tuple) -> None:
    """Give the run its sinks, on the first rank: of the config, further ones, its page, its model's card.

    Args:
        config: a checked config.
        run: is told of them.
        further: makes those of the caller.

    Raises:
        ValueError: one cannot be opened.
    """
    if not run.is_first:
        return
    from rs_aligner.config.changes import settings_of
    from rs_aligner.loggers.chosen import chosen, hyperparameters
    from rs_aligner.record.sinks import TakesSettings
    from rs_aligner.report.live import CardWriter, LivePage

    run.loggers = [*chosen(config.exp_manager), *further()]
    if config.exp_manager.report:
        run.loggers.append(LivePage(run.folder, run.check_owner))
    run.loggers.append(CardWriter(run.folder))
    settings = hyperparameters(settings_of(config))
    for logger in run.loggers:
        if isinstance(logger, TakesSettings):
            logger.log_hyperparams(settings)


def stop_if_asked_alone(config: TrainConfig | GenerateConfig) -> None:
    """Stop here, where there is one rank; several agree on it once they have joined.

    Raises:
        Stopped: this process was asked to.
    """
    if stopping.poll() and config.world_size == 1:
        raise stopping.Stopped(stopping.reason())


@contextmanager
def _ranks(config: TrainConfig | GenerateConfig) -> Iterator[Runtime]:
    """Join the ranks' groups, and leave them at the end.

    Raises:
        Stopped: one of them was asked to; on every rank, before anything slow is loaded.
    """
    from rs_aligner.model.runtime import start

    stop_if_asked_alone(config)
    with start(
        tensor_parallel_size=config.model.tensor_model_parallel_size,
        pipeline_parallel_size=config.model.pipeline_model_parallel_size,
        expert_parallel_size=config.model.expert_model_parallel_size,
        accelerator=config.trainer.accelerator,
        timeout_minutes=config.trainer.timeout_minutes,
        seed=config.model.seed,
        threads=threads(config),
    ) as runtime:
        if runtime.any_rank(stopping.poll()):
            raise stopping.Stopped(stopping.reason())
        yield runtime


def check_machine(config: TrainConfig, is_first: bool) -> None:
    """See to it that the machine has what a run needs, before any work: open files, a folder that takes some.

    Raises:
        ValueError: it has not.
    """
    check_open_files()
    if is_first:
        check_writable(Path(config.exp_manager.explicit_log_dir), "exp_manager.explicit_log_dir")


def read_tokenizer(config: TrainConfig | GenerateConfig) -> tuple[Tokenizer, int]:
    """The policy's tokenizer, and the number of positions that the policy was made for.

    Raises:
        ValueError: the model cannot be used; said before anything of it is loaded.
    """
    stop_if_asked_alone(config)
    say("reading the data")
    from rs_aligner.model.folder import read_model_folder
    from rs_aligner.model.lora_wanted import check_adapters

    tokenizer, arch = read_model_folder(
        config.pretrained_checkpoint.restore_from_path,
        "pretrained_checkpoint.restore_from_path",
        use="train_scoring" if isinstance(config, TrainRewardModelConfig) else "generate",
        resize=config.pretrained_checkpoint.resize_token_embeddings,
    )
    check_adapters(config.model.peft, arch, scores=isinstance(config, TrainRewardModelConfig))
    _configure(config, tokenizer)
    return tokenizer, arch.max_positions


def _configure(config: TrainConfig | GenerateConfig, tokenizer: Tokenizer) -> None:
    """Tell the tokenizer what `model.data` says, and the user what of the config it does not know."""
    from rs_aligner.generation.text import unknown_special

    data = config.model.data
    shown = getattr(data, "judge_special_tokens", False)  # the training of a reward model samples nothing
    taught = config.model.rs.sampling_params.end_strings if isinstance(config, TrainRSConfig) else ()
    tokenizer.configure(data.chat_template_kwargs, shown, taught)
    for note in tokenizer.notes():
        _logger.info(note)
    for key, sampling in _samplings(config).items():
        if unknown := unknown_special(tokenizer, sampling.end_strings):
            _logger.warning(
                "%s.end_strings: %s is no token of this tokenizer; it ends a response that spells it out",
                *(key, ", ".join(unknown)),
            )


def _samplings(config: TrainConfig | GenerateConfig) -> dict[str, SamplingParams]:
    """What is sampled with which end strings, by key; that of held-out prompts only if it has others."""
    match config:
        case TrainRSConfig():
            rs = config.model.rs
            found = {"model.rs.sampling_params": rs.sampling_params}
            if rs.val_sampling_params.end_strings != rs.sampling_params.end_strings:
                found["model.rs.val_sampling_params"] = rs.val_sampling_params
            return found
        case TrainSFTConfig():
            return {"model.sft.sampling_params": config.model.sft.sampling_params}
        case GenerateConfig():
            return {"model.answers.sampling_params": config.model.answers.sampling_params}
    return {}


@contextmanager
def policy_of(
    config: TrainRSConfig | TrainSFTConfig,
    tokenizer: Tokenizer,
    num_optimizer_steps: int,
    *,
    cache_bytes: int | None = None,
) -> Iterator[MegatronPolicy]:
    """Join the ranks' groups and load the policy.

    Args:
        config: a checked config.
        tokenizer: the policy's.
        num_optimizer_steps: how long its schedule is.
        cache_bytes: the decoder's budget where the config has none; the first rank's counts.
    """
    say("loading the policy")
    from rs_aligner.objective.terms import compares_logits
    from rs_aligner.policy.policy import MegatronPolicy
    from rs_aligner.policy.sampler import Decoding

    rs = config.model.rs if isinstance(config, TrainRSConfig) else RSConfig()
    asks_again = isinstance(config, TrainRSConfig) and rs.needs_start
    folder = Path(config.pretrained_checkpoint.restore_from_path)
    with _ranks(config) as runtime:
        generation, budget = rs.generation, runtime.everyone(cache_bytes)[0]
        if budget is not None:
            generation = generation.model_copy(update={"kv_cache_bytes": budget})
        policy = MegatronPolicy(
            *(folder, config.model, runtime, tokenizer),
            optimization=_optimization(config, num_optimizer_steps),
            generation=Decoding(generation, Path(config.exp_manager.explicit_log_dir) / "weights"),
            objective=rs.objective,
            keep_start=asks_again or compares_logits(rs.objective),
        )
        with _closed(policy.sampler):
            yield policy


@contextmanager
def _closed(sampler: Sampler) -> Iterator[None]:
    """Close its decoder behind what is done inside, as over where that came to its end."""
    is_over = False
    try:
        yield
        is_over = True
    finally:
        sampler.decoder.close(is_over=is_over)


@contextmanager
def sampler_of(config: GenerateConfig, tokenizer: Tokenizer) -> Iterator[Sampler]:
    """Join the ranks' groups and load the policy, only to sample from it."""
    say("loading the policy")
    from rs_aligner.policy.sampler import Decoding, load_sampler

    with _ranks(config) as runtime:
        sampler = load_sampler(
            Path(config.pretrained_checkpoint.restore_from_path),
            runtime,
            tokenizer,
            seed=config.model.seed,
            precision=config.trainer.precision,
            generation=Decoding(config.model.answers.generation),
            adapter=config.model.peft.restore_from_path,
        )
        with _closed(sampler):
            yield sampler


@contextmanager
def reward_model_of(
    config: TrainRewardModelConfig, tokenizer: Tokenizer, num_optimizer_steps: int
) -> Iterator[MegatronRewardModel]:
    """Join the ranks' groups and load the model, to train it for so many optimizer steps at most."""
    say("loading the model")
    from rs_aligner.policy.reward_model import MegatronRewardModel

    folder = Path(config.pretrained_checkpoint.restore_from_path)
    with _ranks(config) as runtime:
        yield MegatronRewardModel(
            *(folder, config.model, runtime, tokenizer),
            optimization=_optimization(config, num_optimizer_steps),
        )


def _optimization(config: TrainConfig, num_optimizer_steps: int) -> Optimization:
    """How to train whatever is trained."""
    from rs_aligner.policy.offload import Offloading
    from rs_aligner.policy.trainable import Optimization

    optim = config.model.optim
    rates = partial(learning_rate, sched=optim.sched, lr=optim.lr, max_steps=num_optimizer_steps)
    while_sampling = isinstance(config, TrainRSConfig) and config.model.rs.offload_adam_states
    offload = Offloading(while_sampling, optim.offload_fraction)
    return Optimization(rates, config.trainer.precision, config.loop.gradient_clip_val, offload)
