"""The ranks of a run: process groups, device, and the few collectives that the trainer needs.

A run of one process has process groups too (of one member), so that one path serves a laptop and
a cluster. Objects travel between ranks over gloo whatever the device, since they live on the CPU.
Left out on purpose: context and virtual pipeline parallelism.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from rs_aligner.model import gloo
from rs_aligner.threads import ONE_THREAD, Threads

_logger = logging.getLogger("rs_aligner")

STORE = "RS_ALIGNER_STORE"  # set by our launcher: the descriptor of a listening socket, for the first rank


@dataclass(frozen=True)
class Runtime:
    """This process's place in the run.

    Attributes:
        device: where this rank's tensors live.
        rank, world_size: of all ranks.
        dp_rank, dp_size: which data-parallel replica this rank belongs to, and how many there are.
        is_source: whether this rank speaks for its replica (one rank of each replica does).
        threads: that this rank may use on a CPU.
        ep_rank, ep_size: which share of a layer's experts this rank has, and how many there are: so many
            replicas side by side have all of them together.
    """

    device: torch.device
    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    objects: dist.ProcessGroup
    threads: Threads = ONE_THREAD
    ep_rank: int = 0
    ep_size: int = 1

    @property
    def is_source(self) -> bool:
        return self.tp_rank == 0 and self.pp_rank == 0

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.pp_size - 1

    def everyone(self, item: Any) -> list[Any]:
        """The items of all ranks, in their order, on every rank."""
        items: list[Any] = [None] * self.world_size
        dist.all_gather_object(items, item, group=self.objects)
        return items

    def gather(self, item: Any) -> list[Any]:
        """The items of the replicas' sources, in data-parallel order, on every rank."""
        tagged = self.everyone((self.dp_rank, item) if self.is_source else None)
        found = sorted((entry for entry in tagged if entry is not None), key=lambda entry: entry[0])
        return [item for _, item in found]

    def together(self, action: Callable[[], object], *, first_only: bool = False) -> None:
        """Do something on each rank that calls no other; what fails on one fails on all, with its error.

        Args:
            action: what may lack something of the machine, or find bad input.
            first_only: whether only the first rank does it; the others wait for it.
        """
        error: Exception | None = None
        if self.rank == 0 or not first_only:
            try:
                action()
            except (OSError, MemoryError, ValueError) as caught:
                error = caught
        for found in self.everyone(error):
            if found is not None:
                raise found

    def maximum(self, values: dict[str, float]) -> dict[str, float]:
        """Per key the largest value over all ranks."""
        everyone = self.everyone(values)
        return {key: max(one[key] for one in everyone) for key in values}

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: how ranks agree to stop."""
        return flag if self.world_size == 1 else self._any(flag, self.objects, torch.device("cpu"))

    def any_of_replica(self, flag: bool) -> bool:
        """Whether the flag is set on any rank of this replica."""
        if self.tp_size == self.pp_size == 1:
            return flag
        return self._any(flag, parallel_state.get_model_parallel_group(), self.device)

    def _any(self, flag: bool, group: dist.ProcessGroup, device: torch.device) -> bool:
        found = torch.tensor([flag], dtype=torch.int32, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
        return bool(found.item())

    def from_chooser(self, tensor: torch.Tensor) -> torch.Tensor:
        """What the rank that chooses tokens has, on every rank of this replica; written to the tensor given.

        It is the first tensor-parallel rank of the last stage. The others of its stage compute the same, but
        where one differs in a bit they would end different rows, and wait for each other for ever.

        Args:
            tensor: contiguous, of one shape and type on every rank.
        """
        if self.tp_size > 1 and self.is_last_stage:
            group = parallel_state.get_tensor_model_parallel_group()
            dist.broadcast(tensor, dist.get_global_rank(group, 0), group=group)
        if self.pp_size > 1:
            group = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast(tensor, dist.get_global_rank(group, self.pp_size - 1), group=group)
        return tensor

    def barrier(self) -> None:
        dist.barrier(group=self.objects)

    def use_threads(self, model: Any, tokens: int) -> int | None:
        """Give torch the threads that a pass of so many tokens through the model is worth, on a CPU.

        Args:
            model: this rank's part, Megatron's `GPTModel` or what is wrapped around it.
            tokens: padding included.

        Returns:
            How many; None on a GPU, which is not concerned.
        """
        if self.device.type != "cpu":
            return None
        used = self.threads.for_work(_largest_part(getattr(model, "module", model)) * tokens)
        torch.set_num_threads(used)
        return used

    def cuda_stand_in(self) -> AbstractContextManager[None]:
        """To be entered where Megatron builds a model, or builds, steps, saves or loads an optimizer."""
        if self.device.type == "cuda":
            return nullcontext()
        from rs_aligner.model import cpu

        return cpu.pretend()


def _largest_part(model: Any) -> int:
    """Weights of a layer or of the output layer, whichever has more: each is multiplied once a token."""
    layer = sum(parameter.numel() for parameter in model.decoder.layers[0].parameters())
    outputs = getattr(getattr(model, "output_layer", None), "output_size_per_partition", 0)
    return max(layer, outputs * model.config.hidden_size)


def ranks_started() -> int:
    """How many ranks the launcher (`torchrun` or `srun`) started; 1 when started alone."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)


def _adopt_slurm() -> None:
    """Translate what `srun` sets into what torch reads, where `torchrun` has not done so."""
    if "RANK" in os.environ or "SLURM_PROCID" not in os.environ or ranks_started() == 1:
        return
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]


def _device(accelerator: str) -> torch.device:
    """This rank's: the GPU of its number on the node, or the only one that it is shown.

    Slurm shows a task its own alone with `--gpus-per-task=1` or `--gpu-bind=single`.

    Raises:
        ValueError: more ranks on the node than GPUs.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    number, shown = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if 1 < shown <= number:
        raise ValueError(
            f"rank {number} of this node has no GPU of its own, {shown} are visible: trainer.devices={shown} "
            "is the most here"
        )
    return torch.device("cuda", 0 if shown == 1 else number)


def _meet(listening: int, timeout: timedelta) -> dist.Store:
    """Where the ranks of our launcher meet: at a socket that it has opened, and that the first rank has."""
    rank = int(os.environ["RANK"])
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        ranks_started(),
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=listening if rank == 0 else None,
    )


@contextmanager
def start(
    tensor_parallel_size: int = 1,
    pipeline_parallel_size: int = 1,
    expert_parallel_size: int = 1,
    *,
    accelerator: str = "auto",
    timeout_minutes: float = 30,
    seed: int = 1234,
    store: dist.Store | None = None,
    threads: Threads | None = None,
) -> Iterator[Runtime]:
    """Join the process groups, and leave them at the end.

    Args:
        tensor_parallel_size: ranks that share each layer.
        pipeline_parallel_size: ranks that each hold a part of the layers.
        expert_parallel_size: replicas that each hold a part of every layer's experts.
        accelerator: `cpu`, `gpu`, or `auto` (a GPU where there is one).
        timeout_minutes: how long a collective may wait for its peers.
        seed: of weight initialisation; rollouts have seeds of their own.
        store: where the ranks meet; by default what the launcher set up. A second start in the
            same processes needs a fresh one.
        threads: of this rank on a CPU; None for as many as torch has. At the end torch has again what it had.
    """
    _adopt_slurm()
    alone = "RANK" not in os.environ
    device = _device(accelerator)
    if on_gpu := device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=timeout_minutes)
    if alone:
        store = dist.HashStore()
    elif store is None and (listening := os.environ.pop(STORE, None)):
        store = _meet(int(listening), timeout)
    where: dict[str, Any] = {"device_id": device} if on_gpu else {}
    if store is not None:
        where |= {
            "store": store,
            "rank": int(os.environ.get("RANK", 0)),
            "world_size": 1 if alone else ranks_started(),
        }
    before = torch.get_num_threads()
    threads = threads or Threads(before)
    with gloo.one_device():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout, **where)
        try:
            if not on_gpu:
                from rs_aligner.model import cpu

                cpu.install()
                torch.set_num_threads(threads.most)
                if threads.reason and dist.get_rank() == 0:
                    _logger.info("threads: %s", threads)
            parallel_state.initialize_model_parallel(
                tensor_parallel_size,
                pipeline_parallel_size,
                expert_model_parallel_size=expert_parallel_size,
                distributed_timeout_minutes=timeout_minutes,
            )
            tensor_parallel.model_parallel_cuda_manual_seed(seed)
            torch.manual_seed(seed)
            yield Runtime(
                device=device,
                rank=dist.get_rank(),
                world_size=dist.get_world_size(),
                tp_rank=parallel_state.get_tensor_model_parallel_rank(),
                tp_size=tensor_parallel_size,
                pp_rank=parallel_state.get_pipeline_model_parallel_rank(),
                pp_size=pipeline_parallel_size,
                dp_rank=parallel_state.get_data_parallel_rank(),
                dp_size=parallel_state.get_data_parallel_world_size(),
                objects=dist.new_group(backend="gloo", timeout=timeout),
                threads=threads,
                ep_rank=parallel_state.get_expert_model_parallel_rank(),
                ep_size=expert_parallel_size,
            )
        finally:
            torch.set_num_threads(before)
            parallel_state.destroy_model_parallel()
            dist.destroy_process_group()
