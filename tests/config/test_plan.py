"""The plan tells the run's numbers before the run."""

from __future__ import annotations

import pytest

from rs_aligner.config import (
    TrainRewardModelConfig,
    TrainRSConfig,
    TrainSFTConfig,
    epoch_plan,
    load_config,
    num_optimizer_steps,
    num_steps,
    plan,
    schedule_steps,
)
from rs_aligner.config.plan_parts import batch_sizes

pytestmark = pytest.mark.timeout(60)


def rows(text: str) -> dict[str, str]:
    return dict(line.split("  ", 1) for line in text.replace("   ", "  ").splitlines())


@pytest.fixture
def config(tree):
    return load_config(
        tree(
            **{
                "trainer.devices": 8,
                "trainer.rs.max_epochs": 3,
                "model.tensor_model_parallel_size": 2,
                "model.micro_batch_size": 2,
                "model.rs.num_rollout_samples": 500,
                "model.rs.num_rollouts_per_prompt": 8,
                "model.rs.top_n_rollouts": 2,
                "model.rs.num_val_samples": 100,
                "model.rs.num_val_rollouts_per_prompt": 4,
            }
        ),
        TrainRSConfig,
    )


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (0, "no"),
        (1, "1"),
        (63, "63"),
        (64, "64"),
        (65, "32 or 33"),
        (128, "64"),
        (129, "43"),
        (1000, "62 or 63"),
    ],
)
def test_batches_are_of_equal_size_and_no_more_than_are_needed(rows, sizes):
    assert batch_sizes(rows, most=64) == sizes


def test_the_numbers_of_a_step_and_of_the_run(config):
    text = plan(config, num_prompts=1200, num_val_prompts=128)
    facts = {name: value.strip() for name, value in rows(text).items()}
    assert facts["layout"] == "8 ranks = 4 data x 2 tensor x 1 pipeline"
    assert facts["prompts a step"] == "500, decoded 125 at a time on each data-parallel rank"
    assert facts["rollouts a step"] == "4,000 (8 a prompt)"
    assert facts["kept a step"] == "at most 1,000 (2 a prompt)"
    assert facts["optimizer steps a step"] == "at most 16, of 62 or 63 rows"
    assert facts["micro-batches"] == "8 a rank and optimizer step, of 2 rows"
    assert facts["steps in the run"] == "9 (3 epochs, 3 steps for 1,200 prompts)"
    assert facts["optimizer steps in all"] == "at most 117"  # 16, 16, and 7 for 200 prompts; three times
    assert facts["learning rate"] == (
        "first 1.43e-06, highest 1e-05, mean 5.51e-06, last 1e-06 (CosineAnnealing over 117 optimizer steps)"
    )
    assert facts["validation"].startswith("100 prompts, 400 rollouts; before the first step, every 10")


def test_steps_are_those_of_all_epochs_or_fewer(tree):
    def steps(max_steps: int, num_prompts: int) -> int:
        changes = {"trainer.rs.max_epochs": 2, "trainer.rs.max_steps": max_steps}
        return num_steps(load_config(tree(**changes), TrainRSConfig), num_prompts)

    assert steps(-1, 512) == 2
    assert steps(-1, 513) == 4
    assert steps(3, 513) == 3
    assert steps(9, 513) == 4


def test_a_short_file_makes_small_steps_and_unread_files_leave_the_length_open(config):
    assert "\nrollouts a step         80 (8 a prompt)\n" in plan(config, num_prompts=10)
    assert plan(config).splitlines()[-2].split("  ")[-1].strip() == "3 epochs of the prompts"


def test_a_run_without_validation_says_why(tree):
    no_files = load_config(tree(**{"model.data.data_prefix.validation": []}), TrainRSConfig)
    assert "none (model.data.data_prefix.validation is empty)" in plan(no_files)
    never = load_config(tree(**{"trainer.rs.val_check_interval": None}), TrainRSConfig)
    assert "none (trainer.rs.val_check_interval is null)" in plan(never)


# What a recipe adds. The tree's defaults: 4 rollouts a prompt, the best 1 kept, 64 rows a batch.

SMALL = {
    "model.global_batch_size": 8,
    "model.rs.num_rollout_samples": 10,
    "model.rs.num_rollouts_per_prompt": 4,
}


@pytest.fixture
def small(tree):
    def of(**changes: object) -> TrainRSConfig:
        return load_config(tree(**{**SMALL, **changes}), TrainRSConfig)

    return of


def test_supervised_rows_and_passes_make_optimizer_steps(small, workplace):
    keys = {
        "model.rs.objective.anchor.files": str(workplace / "train.jsonl"),
        "model.rs.objective.anchor.share": 0.25,
        "model.rs.objective.anchor.weight": 2,
        "model.rs.pool.passes": 3,
    }
    config = small(**keys)
    # 10 kept and round(10 x 0.25 / 0.75) = 3 supervised: 2 batches of 8, 3 times; then 5 and 2: 1 batch.
    assert num_optimizer_steps(config, 25) == 3 * (2 + 2 + 1)
    assert schedule_steps(config, 25) == 15
    text = plan(config, num_prompts=25)
    assert "\noptimizer steps a step  at most 6, of 6 or 7 rows, in 3 passes\n" in text
    assert text.endswith("\nsupervised rows         at most 3 a pass, 0.25 of each batch, weight 2")


def test_every_step_of_a_cycle_trains_and_a_cycle_that_restarts_has_a_schedule_of_its_own(small):
    keys = {"model.rs.pool.improve_steps": 3, "model.rs.selection": [{"name": "all"}]}
    grown = small(**keys)
    # Draws of 10 and of 5 prompts: 40 rollouts in 5 batches or 20 in 3, each 3 times.
    assert num_optimizer_steps(grown, 15) == 3 * 5 + 3 * 3
    assert schedule_steps(grown, 15) == 24
    restarting = small(**keys, **{"model.rs.pool.restart": True, "trainer.rs.max_epochs": 2})
    assert num_optimizer_steps(restarting, 15) == 48
    assert schedule_steps(restarting, 15) == 15  # the longest cycle's
    assert plan(restarting, 15).splitlines()[-2:] == [
        "restart                 to the starting weights every 3 steps; "
        "the learning rate begins again, for 15 optimizer steps",
        "warning                 a restart forgets what was learnt of other prompts: "
        "model.rs.num_rollout_samples = 10 should be all 15",
    ]
    assert "warning" not in plan(restarting, 10)
    cut = small(**keys, **{"model.rs.pool.restart": True, "trainer.rs.max_steps": 2})
    assert schedule_steps(cut, 15) == 10


def test_what_is_banked_is_trained_on_again(small):
    config = small(**{"model.rs.pool.max_staleness": 2, "model.rs.top_n_rollouts": 2})
    # Of 40 prompts, 10 a step, 2 of each: 20 rows, then 40, 60 and 60 in batches of 8.
    assert num_optimizer_steps(config, 40) == 3 + 5 + 8 + 8
    # Of 15 prompts all are candidates from step 2 on, but no prompt keeps more than 2: 20 rows, then 30.
    twice = small(
        **{
            "model.rs.pool.max_staleness": 2,
            "model.rs.top_n_rollouts": 2,
            "trainer.rs.max_epochs": 2,
        }
    )
    assert num_optimizer_steps(twice, 15) == 3 + 4 + 4 + 4
    text = plan(config, num_prompts=40)
    assert "\nrollouts a step         40 (4 a prompt); the kept stay candidates for 2 steps\n" in text
    assert "\nkept a step             at most 60 (2 a prompt)\n" in text
    assert "\nkept a step             at most 30 (2 a prompt)\n" in plan(config, num_prompts=15)


def test_a_budget_that_prompts_share_bounds_what_a_step_keeps(small):
    until = {"accepted": 2, "at_least": 1, "max_rollouts": 16}
    everything = small(**{"model.rs.until": until, "model.rs.selection": [{"name": "all"}]})
    assert everything.model.rs.most_kept([10]) == 40  # the budget, whoever gets it
    best = small(**{"model.rs.until": until, "model.rs.top_n_rollouts": 8})
    assert best.model.rs.most_kept([10]) == 40
    assert small(**{"model.rs.until": until, "model.rs.top_n_rollouts": 3}).model.rs.most_kept([10]) == 30
    median = small(**{"model.rs.until": until, "model.rs.selection": [{"name": "median"}]})
    assert median.model.rs.most_kept([10]) == 20  # below the middle of each group, so of all
    assert "40 (4 a prompt) at most, until 2 of a prompt score 1 or more" in plan(everything, 10)


def test_scored_rollouts_are_as_many_as_their_files_have(small, workplace):
    file = str(workplace / "train.jsonl")
    config = small(
        **{
            "model.data.data_prefix.train": [],
            "model.rs.offline": file,
            "model.rs.selection": [{"name": "positive"}],
        }
    )
    assert num_optimizer_steps(config, 10, largest=16) == 20  # 160 rollouts in batches of 8
    text = plan(config, 10, largest=16)
    assert "\nrollouts a step         none; scored ones of 10 prompts are read\n" in text
    assert "\nkept a step             at most 160 (scored above 0)\n" in text


def test_a_line_for_each_choice_that_not_every_run_makes(small):
    names = {"supervised rows", "KL term", "restart", "patience", "watched judge"}
    plain = plan(small(), num_prompts=25)
    assert not names & {line[:24].strip() for line in plain.splitlines()}
    keys = {
        "model.rs.objective.kl": 0.05,
        "model.rs.pool.restart": True,
        "trainer.rs.patience": 3,
        "watched_rm": {"endpoints": ["one:5555", "two:5556"]},
        "exp_manager.checkpoint_callback_params.monitor": "validation/watched",
    }
    assert plan(small(**keys)).splitlines()[-4:] == [
        "KL term                 weight 0.05, to the starting policy, whose weights wait in the CPU's memory",
        "restart                 to the starting weights each step; "
        "the learning rate begins again, for 2 optimizer steps",
        "patience                stops after 3 validations without a better validation/watched; "
        "final/ is the best policy",
        "watched judge           at http://one:5555, http://two:5556; "
        "it scores every rollout and decides nothing",
    ]
    here = {"in_process": True, "judge": {"name": "exact_answer"}}
    assert "\nwatched judge           in this process; it " in plan(small(watched_rm=here))
    for estimator, said in (
        ("k3+", "weight 0.05, by k3+, to the starting policy"),
        ("kl", "weight 0.05, by kl (which has no gradient towards it: k1+ has), to the starting policy"),
    ):
        assert f"\nKL term                 {said}" in plan(
            small(**{"model.rs.objective.kl": 0.05, "model.rs.objective.kl_estimator": estimator})
        )
    seldom = {"model.rs.pool.restart": True, "model.rs.pool.improve_steps": 3, "trainer.rs.patience": 1}
    assert "to the starting weights every 3 steps; " in plan(small(**seldom), num_prompts=25)
    assert "stops after 1 validation without " in plan(small(**seldom))
    on_device = {"model.rs.objective.kl": 1, "model.rs.objective.offload_reference": False}
    assert plan(small(**on_device)).endswith("whose weights wait on the device")


# What is senseless is warned of, in a line that names the key.


def warnings(text: str) -> list[str]:
    return [line.split("  ", 1)[1].strip() for line in text.splitlines() if line.startswith("warning")]


def test_defaults_are_warned_of_at_no_length(small):
    for prompts in (1, 8, 100, 2000):
        assert warnings(plan(small(), num_prompts=prompts)) == []


def test_nemos_schedule_in_a_short_run_is_warned_of_by_the_key_that_leaves_no_room_for_it(small):
    nemo = {"warmup_steps": 10, "constant_steps": 1000, "min_lr": 9e-8}
    config = small(**{"model.optim.sched": nemo, "model.optim.lr": 1e-5})
    text = plan(config, num_prompts=500)
    assert "\nlearning rate           first 0, highest 1e-05, mean 6.3e-07, last 9e-08 (Cosine" in text
    assert warnings(text) == [
        "model.optim.sched.constant_steps = 1,000: the rate is near model.optim.lr = 1e-05 (0.9 of it or "
        "more) in only 2 of 100 optimizer steps; null fits the run's length",
        "model.optim.sched.constant_steps = 1,000: the mean rate is 6.3% of model.optim.lr = 1e-05; "
        "null fits the run's length",
    ]
    assert warnings(plan(config, num_prompts=50_000)) == []


def test_a_warm_up_longer_than_the_run_is_warned_of(small):
    for name in ("constant", "CosineAnnealing"):
        config = small(**{"model.optim.sched": {"name": name, "warmup_steps": 500}})
        rarely, low = warnings(plan(config, num_prompts=500))
        assert rarely.startswith(
            "model.optim.sched.warmup_steps = 500: the rate is near model.optim.lr = 1e-05"
        )
        assert "in only 0 of 100 optimizer steps" in rarely
        assert low.startswith("model.optim.sched.warmup_steps = 500: the mean rate is 10.1% of")


def test_keys_that_only_together_leave_no_rate_are_both_named(small):
    sched = {"warmup_steps": 200, "constant_steps": 200}
    (rarely,) = warnings(plan(small(**{"model.optim.sched": sched}), num_prompts=500))
    assert rarely.startswith("model.optim.sched = {constant_steps: 200, warmup_steps: 200}: the rate is near")


def test_steps_on_few_rows_are_warned_of_by_what_makes_them_few(small):
    all_few = small(**{"model.global_batch_size": 128})
    assert warnings(plan(all_few, num_prompts=500)) == [
        "model.global_batch_size = 128: an optimizer step on 10 rows at most, fewer than a tenth of it; "
        "lower it, or keep more in a step"
    ]
    last_few = small(**{"model.global_batch_size": 64})
    assert warnings(plan(last_few, num_prompts=30)) == []
    assert warnings(plan(last_few, num_prompts=31)) == [
        "model.rs.num_rollout_samples = 10: an optimizer step on 1 row at most, fewer than a tenth of "
        "model.global_batch_size = 64; 8 would make the draws of an epoch equal"
    ]
    cut = small(**{"model.global_batch_size": 64, "trainer.rs.max_steps": 3})
    assert warnings(plan(cut, num_prompts=31)) == []


@pytest.mark.parametrize(("schema", "name"), [(TrainSFTConfig, "sft"), (TrainRewardModelConfig, "rm")])
def test_trainings_that_pass_over_rows_have_a_plan_too(tree, schema, name):
    what = {"sft": "rows", "rm": "pairs"}[name]
    config = load_config(tree(**{f"trainer.{name}.max_epochs": 3}), schema)
    facts = {line: text.strip() for line, text in rows(epoch_plan(config, 1000, 8)).items()}
    assert facts["data"] == f"1,000 {what}, 3 epochs"
    assert facts["optimizer steps"] == f"at most 48, of 62 or 63 {what}"
    assert facts["micro-batches"] == "64 a rank and optimizer step, of 1 rows"
    assert facts["learning rate"].startswith("first 2.5e-06, highest 1e-05, mean 5.56e-06, last 1.0")
    assert facts["validation"].startswith({"sft": "none (there is no judge)", "rm": "8 pairs; before"}[name])
    assert "warning" not in facts
    nemo = {"warmup_steps": 10, "constant_steps": 1000}
    few = load_config(tree(**{"model.optim.sched": nemo}), schema)
    cause, *rates = warnings(epoch_plan(few, 6, 0))
    assert cause == (
        "model.global_batch_size = 64: an optimizer step on "
        f"6 rows at most, fewer than a tenth of it; the data has 6 {what}"
    )
    assert [line.split(":")[0] for line in rates] == ["model.optim.sched = {constant_steps"] * 2
