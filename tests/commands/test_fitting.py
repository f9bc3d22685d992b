"""A training that cannot fit says so before it is loaded, with what would; one that can is let go on."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rs_aligner.commands import machine
from rs_aligner.commands.fitting import Fit, Room
from rs_aligner.config import TrainRSConfig
from rs_aligner.model.activations import Lengths
from rs_aligner.model.architecture import Architecture, Experts, Rope
from rs_aligner.record.room import memory_limit
from tests.config.leaf_rows import tree_of
from tests.config.leaf_table import TABLE
from tests.config.leaf_world import look, make_place

pytestmark = pytest.mark.timeout(120)
EIGHT = Architecture(
    family="llama",
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    max_positions=8192,
    norm_eps=1e-5,
    rope=Rope(theta=5e5),
    tied_embeddings=False,
)
LENGTHS = Lengths(longest=2048, shortest=300, learnt=1024, prompts=512, prompt=1024)
GIB = 1 << 30


def config_of(**keys: Any) -> TrainRSConfig:
    """A config that nothing runs by."""
    given = {
        "exp_manager.explicit_log_dir": "unused",
        "pretrained_checkpoint.restore_from_path": "unused",
        "model.data.data_prefix.train": "unused",
        "model.rs.length_params.max_length": 1024,
        **keys,
    }
    return TrainRSConfig.model_validate(tree_of(given))


def fit_of(total: int, lengths: Lengths = LENGTHS, **keys: Any) -> Fit:
    return Fit(EIGHT, config_of(**keys), lengths, Room("a GPU", total, True), on_gpu=True)


ON_EIGHT = {"trainer.devices": 8, "model.micro_batch_size": 4}


def test_an_8b_model_on_one_gpu_is_refused_with_settings_that_fit() -> None:
    with pytest.raises(ValueError, match="the model does not fit") as error:
        fit_of(80 * GIB, **{"trainer.devices": 1}).check()
    told = str(error.value)
    # 2 bytes of weights, 4 of gradients and 12 of the optimizer for each of 8.03 billion parameters.
    assert re.search(r"needs 13\d\.\d\d GiB at least, and a GPU has 80\.00 GiB", told), told
    overrides = re.findall(r"([\w.]+)=(\w+)", told.partition("What would fit: ")[2])
    keys = {key: int(value) if value.isdigit() else value for key, value in overrides}
    assert "trainer.num_nodes" in keys
    fit_of(80 * GIB, **{"trainer.devices": 1, **keys}).check()


def test_a_warning_names_the_nearest_settings_and_they_fit() -> None:
    fit = fit_of(80 * GIB, **ON_EIGHT)
    fit.check()  # the shortest rows may be all that there is
    [warning] = [text for name, text in fit.lines() if name == "warning"]
    assert "the longest rows may not fit" in warning
    for settings in fit.nearest():
        keys = dict(one.split("=") for one in settings)
        other = fit_of(80 * GIB, **{**ON_EIGHT, **keys})
        assert [name for name, _ in other.lines() if name == "warning"] == [], settings
    first = fit.nearest()[0]
    assert all("nodes" not in one and "parallel" not in one for one in first)  # in this layout


def test_a_mixture_that_does_not_fit_is_told_to_share_its_experts_out() -> None:
    experts = Experts(number=64, per_token=4)
    mixture = replace(EIGHT, family="mixtral", num_layers=16, intermediate_size=2048, experts=experts)

    def fit(**keys: Any) -> Fit:
        return Fit(mixture, config_of(**keys), LENGTHS, Room("a GPU", 80 * GIB, True), on_gpu=True)

    for held in (1, 8):  # none that the layout does not divide is named, whichever there is now
        keys = {"trainer.devices": 8, "model.micro_batch_size": 1, "model.expert_model_parallel_size": held}
        one = fit(**keys)
        assert not one.fits
        other = dict(setting.split("=") for setting in one.nearest()[-1])
        assert int(other["model.expert_model_parallel_size"]) > 1
        assert fit(**{**keys, **other}).fits


def test_what_is_certain_may_fill_the_memory_and_no_byte_more() -> None:
    needed = fit_of(80 * GIB, **ON_EIGHT).certain
    fit_of(needed, **ON_EIGHT).check()
    with pytest.raises(ValueError, match="does not fit"):
        fit_of(needed - 1, **ON_EIGHT).check()


def test_without_a_gpu_here_nothing_is_refused() -> None:
    fit = Fit(EIGHT, config_of(), LENGTHS, None, on_gpu=True)
    fit.check()
    assert fit.verdict == "not known here: this machine has no GPU"
    assert fit.cache_bytes is None


def test_recomputation_and_smaller_micro_batches_need_less() -> None:
    most = fit_of(80 * GIB, **ON_EIGHT).memory.training
    for keys in ({"model.activations_checkpoint_granularity": "selective"}, {"model.micro_batch_size": 2}):
        less = fit_of(80 * GIB, **{**ON_EIGHT, **keys}).memory.training
        assert less < most
    full = {"model.activations_checkpoint_granularity": "full"}
    assert fit_of(80 * GIB, **{**ON_EIGHT, **full}).memory.activations * 10 < most


def test_a_gpus_cache_is_what_the_plan_leaves_of_all_of_it() -> None:
    fit = fit_of(80 * GIB, **ON_EIGHT)
    budget = fit.cache_bytes
    assert budget is not None
    assert 0 < budget < fit.memory.cache  # of all rollouts at once
    assert fit.memory.held + budget <= 0.9 * 80 * GIB
    assert fit_of(80 * GIB, **ON_EIGHT, **{"model.rs.generation.kv_cache_bytes": 7}).cache_bytes is None
    few = replace(LENGTHS, prompts=8)
    assert fit_of(80 * GIB, few, **ON_EIGHT).cache_bytes == fit_of(80 * GIB, few, **ON_EIGHT).memory.cache


def test_what_gives_way_while_sampling_is_room_for_keys_and_values() -> None:
    plain = fit_of(80 * GIB, **ON_EIGHT)
    fit = fit_of(80 * GIB, **ON_EIGHT, **{"model.rs.offload_adam_states": True})
    trained = plain.memory.weights // 2
    assert fit.memory.away == 4 * trained + 12 * trained // 8  # the optimizer's share of eight ranks
    assert fit.memory.held == plain.memory.held
    assert plain.cache_bytes is not None
    assert fit.cache_bytes is not None
    gained = fit.cache_bytes - plain.cache_bytes
    assert 0.5 * fit.memory.away < gained <= fit.memory.away  # choosing tokens takes its part
    [told] = [text for name, text in fit.lines() if name == "  sampling"]
    assert told.endswith("41.13 GiB of the above give up their place")
    [told] = [text for name, text in fit.lines() if name == "  beside it"]
    assert told.startswith("up to 26.18 GiB wait")  # with the starting weights, 2 bytes each


def test_all_weights_of_an_8b_model_fit_on_one_gpu_beside_which_the_optimizer_waits() -> None:
    one = fit_of(80 * GIB, **{"trainer.devices": 1, "model.micro_batch_size": 1})
    assert not one.fits
    assert one.nearest()[0] == ["model.optim.offload_fraction=1"]
    keys = {"trainer.devices": 1, "model.micro_batch_size": 1, "model.optim.offload_fraction": 1}
    room = Room("a GPU", 80 * GIB, True, beside=128 * GIB)
    fit = Fit(EIGHT, config_of(**keys), LENGTHS, room, on_gpu=True)
    assert fit.fits
    told = [text for name, text in fit.lines() if name == "warning"]
    assert ["a checkpoint may not fit into the memory beside" in one for one in told] == [True]
    with pytest.raises(
        ValueError, match=r"104\.\d\d GiB of a rank wait .* lower model\.optim\.offload_fraction"
    ):
        Fit(EIGHT, config_of(**keys), LENGTHS, room._replace(beside=64 * GIB), on_gpu=True).check()
    assert not Fit(EIGHT, config_of(**keys), LENGTHS, room._replace(beside=64 * GIB), on_gpu=True).fits


def test_a_groups_limit_is_this_machines_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"total": 64 * GIB}))
    assert memory_limit(tmp_path) == 64 * GIB  # nothing is told of groups
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job/task\n")
    group = tmp_path / "sys/fs/cgroup/job/task"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memory_limit(tmp_path) == 64 * GIB
    (group.parent / "memory.max").write_text(f"{8 * GIB}\n")
    assert memory_limit(tmp_path) == 8 * GIB
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job\n")
    old = tmp_path / "sys/fs/cgroup/memory/job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    assert memory_limit(tmp_path) == 4 * GIB


def test_a_run_keeps_the_cache_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up device: the budget is kept in the run's folder, and used again on another one."""
    make_place(tmp_path)
    monkeypatch.setattr(machine, "is_on_gpu", lambda config: True)
    totals = [1 << 26, 1 << 28]
    monkeypatch.setattr(machine, "gpu_memory", lambda: totals[0])
    tree = tree_of(TABLE["train_rs"][0])
    first = look("train_rs", tree, tmp_path)
    [budget] = set(re.findall(r"'kv_cache_bytes': (\w+)", str(first["sampled"])))
    assert 1 < int(budget) <= 0.9 * totals[0]
    [attempt] = sorted((tmp_path / "out").rglob("attempt_*.yaml"))
    assert yaml.safe_load(attempt.read_text())["seen"]["kv_cache_bytes"] == budget
    totals.reverse()
    longer = tree_of({**TABLE["train_rs"][0], "trainer.rs.max_epochs": 3})
    second = look("train_rs", longer, tmp_path, again=True)
    assert set(re.findall(r"'kv_cache_bytes': (\w+)", str(second["sampled"]))) == {budget}
