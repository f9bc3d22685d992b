"""What the training scripts share: one way out for errors, the ranks, the loggers, the run's config.

Only this file knows NeMo and Lightning; they are imported where they are needed, behind every check.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rs_aligner.config import (
    ConfigError,
    GenerationConfig,
    ObjectiveConfig,
    TrainConfig,
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
)
from rs_aligner.config.common import ExpManagerBase
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.schedule import learning_rate

if TYPE_CHECKING:
    from rs_aligner.policy.policy import MegatronPolicy
    from rs_aligner.policy.reward_model import MegatronRewardModel
    from rs_aligner.policy.tokenizer import Tokenizer
    from rs_aligner.rollout import PreferencePair, Prompt, TrainingRow

RANK, WORLD_SIZE = "RANK", "WORLD_SIZE"


def rank() -> int:
    """Of this process, by what `torchrun` or `srun` says; 0 when started alone."""
    return int(os.environ.get(RANK, os.environ.get("SLURM_PROCID", 0)))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What needs no stack trace ends the process with one clear message.

    Status 2 for what a user has to mend first, 1 for a run that cannot go on, 130 for Ctrl-C.
    """
    try:
        yield
    except (ValueError, ConnectionError) as error:
        sys.exit(_complain(error, 2))
    except KeyboardInterrupt:
        sys.exit(_complain("interrupted", 130))
    except JudgeFailed as error:  # of every rank; one says so
        sys.exit(_complain(error, 1) if rank() == 0 else 1)
    except FloatingPointError as error:
        sys.exit(_complain(error, 1))


def _complain(error: Any, status: int) -> int:
    print(f"error: {error}", file=sys.stderr, flush=True)
    return status


def start_ranks(config: TrainConfig) -> None:
    """See to it that there are as many ranks as configured.

    Under `torchrun` or `srun` they are there already; started alone on one node with several devices,
    this starts them with the same command line, waits, and ends this process as they ended.

    Raises:
        ConfigError: another number of ranks was started than the config says.
    """
    wanted, per_node = config.world_size, config.trainer.devices
    if "RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        started = int(os.environ.get(WORLD_SIZE, os.environ.get("SLURM_NTASKS", 1)))
        if started != wanted:
            raise ConfigError(
                [f"trainer.num_nodes x trainer.devices is {wanted}, but {started} ranks run; make them equal"]
            )
        _set_up(config)
        return
    if config.trainer.num_nodes > 1:
        raise ConfigError(
            [f"trainer.num_nodes is {config.trainer.num_nodes}: start with srun or torchrun, or set it to 1"]
        )
    if per_node > 1:
        sys.exit(_launch(per_node))
    _set_up(config)


def _launch(num_ranks: int) -> int:
    """Run this very command on `num_ranks` ranks of this node; returns 0, or a failed rank's status."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the rank says what is wrong
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(launch, sys.executable)("-u", *sys.argv)
    except ChildFailedError as error:
        return max(abs(error.get_first_failure()[1].exitcode), 1)
    except SignalException as error:  # Ctrl-C or SIGTERM; the ranks have been ended
        return 128 + error.sigval
    return 0


def _set_up(config: TrainConfig) -> None:
    """Threads, logging and warnings of this rank; before torch is imported."""
    threads = config.trainer.threads or max(1, (os.cpu_count() or 1) // config.trainer.devices)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    warnings.filterwarnings("ignore", module=r"(megatron|nemo|lightning|torch|pydantic)\.")
    level = logging.INFO if rank() == 0 else logging.ERROR
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("rs_aligner")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


def say(what: str) -> None:
    """Tell what takes a while, on the first rank."""
    logging.getLogger("rs_aligner").info(what)


def layout(config: TrainConfig) -> dict[str, Any]:
    """What the ranks need to know to form their groups."""
    return {
        "tensor_parallel_size": config.model.tensor_model_parallel_size,
        "pipeline_parallel_size": config.model.pipeline_model_parallel_size,
        "accelerator": config.trainer.accelerator,
        "timeout_minutes": config.trainer.timeout_minutes,
        "seed": config.model.seed,
    }


def read_tokenizer(config: TrainConfig) -> tuple[Tokenizer, int]:
    """The policy's tokenizer, and the number of positions that the policy was made for."""
    say("reading the data")
    from rs_aligner.files import hugging_face_part
    from rs_aligner.policy.architecture import read_architecture
    from rs_aligner.policy.tokenizer import Tokenizer

    source = hugging_face_part(Path(config.pretrained_checkpoint.restore_from_path))
    return Tokenizer(source), read_architecture(source).max_positions


def read_prompts(
    files: tuple[str, ...], config: TrainRSConfig | TrainSFTConfig, tokenizer: Tokenizer, max_length: int
) -> tuple[Prompt, ...]:
    """The prompts of files, which may be none, as `model.data` says; longer ones are left out."""
    from rs_aligner.data import load_prompts

    if not files:
        return ()
    template, add_bos = config.model.data.prompt_template, config.model.data.add_bos
    return load_prompts(
        files, tokenizer, template=template, add_bos=add_bos, max_prompt_length=max_length
    ).prompts


def read_sft_rows(config: TrainSFTConfig, tokenizer: Tokenizer, positions: int) -> tuple[TrainingRow, ...]:
    """The rows to learn, as `model.data` says; longer ones are left out."""
    from rs_aligner.data import load_sft_rows

    how = _reading(config, positions)
    return load_sft_rows(config.model.data.data_prefix.train, tokenizer, **how).rows


def read_anchors(config: TrainRSConfig, tokenizer: Tokenizer, positions: int) -> list[TrainingRow]:
    """The supervised rows to mix in, shuffled once; none if none are configured."""
    from rs_aligner.data import load_sft_rows
    from rs_aligner.objective import shuffled_anchors

    anchor = config.model.rs.objective.anchor
    if not anchor.files:
        return []
    rows = load_sft_rows(anchor.files, tokenizer, **_reading(config, positions)).rows
    return shuffled_anchors(rows, anchor.weight, config.model.seed)


def read_pairs(
    files: tuple[str, ...], config: TrainRewardModelConfig, tokenizer: Tokenizer, positions: int
) -> tuple[PreferencePair, ...]:
    """The pairs of files, which may be none, as `model.data` says; longer ones are left out."""
    from rs_aligner.data import load_pairs

    return load_pairs(files, tokenizer, **_reading(config, positions)).pairs if files else ()


def _reading(config: TrainConfig, positions: int) -> dict[str, Any]:
    """How rows with answers are read."""
    data = config.model.data
    return {
        "template": data.prompt_template,
        "add_bos": data.add_bos,
        "max_length": config.model.sequence_length(positions),
        "max_prompt_length": data.seq_length,
    }


@contextmanager
def policy_of(
    config: TrainRSConfig | TrainSFTConfig, tokenizer: Tokenizer, num_optimizer_steps: int
) -> Iterator[MegatronPolicy]:
    """Join the ranks' groups and load the policy, to train it for so many optimizer steps at most."""
    say("loading the policy")
    from rs_aligner.policy.policy import MegatronPolicy
    from rs_aligner.policy.runtime import start

    is_rs = isinstance(config, TrainRSConfig)
    decoder = config.model.rs.generation if is_rs else GenerationConfig()
    objective = config.model.rs.objective if is_rs else ObjectiveConfig()
    how = {
        **_training(config, num_optimizer_steps),
        "kv_cache_bytes": decoder.kv_cache_bytes,
        "compiled_decoder": decoder.compile,
        "objective": objective,
        "keep_start": objective.kl > 0,
    }
    folder = Path(config.pretrained_checkpoint.restore_from_path)
    with start(**layout(config)) as runtime:
        yield MegatronPolicy(folder, config.model, runtime, tokenizer, **how)


@contextmanager
def reward_model_of(
    config: TrainRewardModelConfig, tokenizer: Tokenizer, num_optimizer_steps: int
) -> Iterator[MegatronRewardModel]:
    """Join the ranks' groups and load the model, to train it for so many optimizer steps at most."""
    say("loading the model")
    from rs_aligner.policy.reward_model import MegatronRewardModel
    from rs_aligner.policy.runtime import start

    folder, how = Path(config.pretrained_checkpoint.restore_from_path), _training(config, num_optimizer_steps)
    with start(**layout(config)) as runtime:
        yield MegatronRewardModel(folder, config.model, runtime, tokenizer, **how)


def _training(config: TrainConfig, num_optimizer_steps: int) -> dict[str, Any]:
    """How to train whatever is trained."""
    optim = config.model.optim
    return {
        "precision": config.trainer.precision,
        "clip_grad": config.loop.gradient_clip_val,
        "learning_rate": partial(
            learning_rate, sched=optim.sched, lr=optim.lr, max_steps=num_optimizer_steps
        ),
    }


def memory(config: TrainRSConfig, num_prompts: int, longest: int) -> str:
    """A line for the plan: what a rank will need."""
    import torch

    from rs_aligner.files import hugging_face_part
    from rs_aligner.policy.architecture import read_architecture
    from rs_aligner.policy.memory import memory_plan

    arch = read_architecture(hugging_face_part(Path(config.pretrained_checkpoint.restore_from_path)))
    accelerator = config.trainer.accelerator
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    prompts = min(num_prompts, config.model.rs.num_rollout_samples)
    return memory_plan(arch, config, prompts, longest, on_gpu=on_gpu)


def keep_config(config: DictConfig, folder: str) -> None:
    """Write the resolved config into the run's folder, on the first rank."""
    if rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, Path(folder) / "config.yaml", resolve=True)


def loggers(config: ExpManagerBase) -> list[Any]:
    """TensorBoard's and W&B's loggers, set up by NeMo's experiment manager, on the first rank.

    Its checkpoint, resume and time features stay off, and it has `logs/` to itself: whatever files lie
    where it works, it moves away at the next start.
    """
    if rank() != 0 or not (config.create_tensorboard_logger or config.create_wandb_logger):
        return []
    logging.disable(logging.WARNING)  # both tell at length what they are not going to do
    try:
        from lightning.pytorch import Trainer
        from lightning.pytorch.plugins.environments import LightningEnvironment
        from nemo.utils.exp_manager import exp_manager

        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            plugins=[LightningEnvironment()],
        )
        wandb = {"name": config.name, "project": config.name, **config.wandb_logger_kwargs}
        exp_manager(
            trainer,
            {
                "explicit_log_dir": str(Path(config.explicit_log_dir) / "logs"),
                "name": config.name,
                "create_tensorboard_logger": config.create_tensorboard_logger,
                "create_wandb_logger": config.create_wandb_logger,
                "wandb_logger_kwargs": wandb,
                "resume_if_exists": False,
                "create_checkpoint_callback": False,
                "create_preemption_callback": False,
                "log_step_timing": False,
                "log_tflops_per_sec_per_gpu": False,
            },
        )
        return list(trainer.loggers)
    finally:
        logging.disable(logging.NOTSET)
