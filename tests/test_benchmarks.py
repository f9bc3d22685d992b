"""The benchmarks run; what they find is recorded beside them and not judged here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rs_aligner.rollout import Group, Prompt, Rollout, Score

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str, timeout: int, **variables: str) -> str:
    """What a script prints; one that fails fails the test with all that it said."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_comparison_on_a_device_runs(tmp_path: Path) -> None:
    """On a CPU and a tiny shape: that it runs is all that can be known without a GPU."""
    program = (
        "import json, on_device; found = on_device.compare('tiny', 'cpu', 1, num_prompts=2, num_rollouts=3, "
        "prompt_length=20, max_length=5); print(json.dumps(found))"
    )
    said = run("-W", "ignore", "-c", program, timeout=110, PYTHONPATH="benchmarks")
    found = json.loads(said.splitlines()[-1])
    assert found["hf / ours"] > 0
    assert found["share of the limit"] > 0
    assert found["seconds"]["limit"] == pytest.approx(sum(found["limit by part"].values()))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_decoder_is_measured_against_every_opponent(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    quick = ("--quick", "--workloads", "c", "--repeats", "1")
    run("benchmarks/generation.py", *quick, "--out", str(out), timeout=270)
    sides = json.loads(out.read_text())["results"]["c"]
    assert set(sides) == {"ours", "hf", "hf_forked", "megatron", "limit", "torch"}
    assert len({sides[side]["tokens"] for side in sides if side != "limit"}) == 1
    assert all(seconds > 0 for side in sides.values() for seconds in side["seconds"])


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_judges_client_is_measured_against_its_server(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run("benchmarks/judge.py", "--quick", "--out", str(out), timeout=190)
    results = json.loads(out.read_text())["results"]
    assert set(results) == {"cost", "memory", "overlap", "throughput"}
    assert results["memory"]["bounded"]["most"] <= 512 + 4 * 64  # waiting, and under way
    assert results["throughput"]["ratio"] > 1


@pytest.fixture
def selection(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's functions; scripts there import each other by bare names."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("selection")


def tried(*outcomes: str) -> list[Group]:
    """A group for each text of rights (1) and wrongs (0), its i-th rollout of i + 1 tokens."""
    return [
        Group(
            Prompt(f"p{number}", "1+1=", (1,)),
            [Rollout(number, i, (5,) * (i + 1), "2", "stop") for i in range(len(text))],
            [Score(float(one)) for one in text],
        )
        for number, text in enumerate(outcomes)
    ]


def test_fixed_n_counts_no_more_accepted_than_wanted(selection: ModuleType) -> None:
    groups = tried("1101", "0001")
    found_N, spent_N = selection.fixed_curves(groups, 2)
    assert found_N.tolist() == [0, 1, 2, 2, 3]
    assert spent_N.tolist() == [0, 2, 6, 12, 20]
    assert selection.fixed_curves(groups, 1)[0].tolist() == [0, 1, 1, 1, 2]


def test_equal_accepted_lie_on_the_line_between_two_ns(selection: ModuleType) -> None:
    found_N, spent_N = selection.fixed_curves(tried("1101", "0001"), 1)
    assert selection.at_equal_accepted(found_N, spent_N, 1) == (1.0, 2.0)  # the first N that suffices
    assert selection.at_equal_accepted(found_N, spent_N, 1.5) == (3.5, 16.0)
    assert selection.at_equal_accepted(found_N, spent_N, 2) == (4.0, 20.0)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sampling_until_is_measured_against_fixed_n(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run("benchmarks/selection.py", "--quick", "--work", str(tmp_path), "--out", str(out), timeout=390)
    found = json.loads(out.read_text())
    assert sum(found["policies"][0]["pass_rates"]["shares_by_tenths"]) == pytest.approx(1)
    for name, row in found["results"].items():
        k = int(name.removeprefix("k=")[0])
        budget = 4 * k if "half" in name else 8 * k
        assert 0 < row["accepted"]["mean"] <= k
        # A few tokens an answer; groups differ a little in how long theirs are.
        assert row["tokens"]["mean"] <= 8 * budget
        assert row["ratio"]["mean"] == pytest.approx(
            row["tokens"]["mean"] / row["fixed_tokens"]["mean"], rel=1e-2
        )
    rounds = {name: row["rounds"]["mean"] for name, row in found["results"].items()}
    assert rounds["k=1, rounds of 4"] < rounds["k=1, growing rounds"] <= rounds["k=1, rounds of 1"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_judge_with_a_flaw_is_measured_with_every_remedy_asked_for(tmp_path: Path, test_data: Path) -> None:
    out = tmp_path / "results.json"
    command = ("benchmarks/flawed_judge.py", "--quick", "--work", str(tmp_path / "work"), "--out", str(out))
    data = {"RS_ALIGNER_TEST_DATA": str(test_data)}
    run(*command, timeout=390, **data)
    found = json.loads(out.read_text())
    assert set(found["results"]) == {"plain", "anchor", "early_stopping", "pessimistic"}
    plain = found["results"]["plain"]
    assert [row["step"] for row in plain["course"]] == [0, 1, 2, 3]
    assert plain["final"]["drift"]["mean"] != 0
    for row in plain["course"]:
        assert row["validation/reward"]["mean"] >= row["validation/watched"]["mean"]  # the flaw only adds
    assert (tmp_path / "work" / "anchor_1" / "result.json").is_file()
    distrusting = found["results"]["pessimistic"]
    ends = distrusting["course"][-1]["validation/watched"]["mean"]
    highest = max(row["validation/watched"]["mean"] for row in distrusting["course"])
    assert distrusting["below_highest"] == [pytest.approx(1 - ends / highest, abs=1e-3)]
    assert all("tail/watched" in row for row in distrusting["course"][1:])


def test_the_cost_of_answers_is_measured(monkeypatch: pytest.MonkeyPatch, test_data: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    answers = importlib.import_module("answers")
    assert answers.accepted(answers.ours, [("#### 18", "18"), ("#### 17", "18")])[0] == 1
    found = answers.costs(80)
    assert len(found) == 12
    assert all(figure > 0 for figure in found.values())


def test_planned_memory_stands_beside_what_was_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = {"one rank": {"lora": {"held": (11 << 10, 10 << 10), "a step": (3 << 20, 4 << 20)}}}
    line = importlib.import_module("planned_memory").table(found)
    assert line == "| one rank | lora | 11 / 10 (1.10) | 3,072 / 4,096 (0.75) |"


def quick_engines(out: Path, *sides: str, **variables: str) -> dict[str, Any]:
    """What the benchmark of engines finds of its small model."""
    command = (
        "-W",
        "ignore",
        "benchmarks/engines.py",
        "--quick",
        "--repeats",
        "1",
        "--sides",
        ",".join(sides),
    )
    run(*command, "--out", str(out), timeout=290, **variables)
    found: dict[str, Any] = json.loads(out.read_text())["results"]["57m"]
    for work in ("sampled", "greedy"):
        assert all(one["tokens_a_cpu_second"] > 0 for one in found[work].values())
    assert {one["equal"] for one in found["greedy"].values()} == {1.0}  # the same weights, in float32
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_engines_are_measured_side_by_side_with_a_real_vllm(tmp_path: Path, vllm_python: Path) -> None:
    sides = ("kernels", "torch", "vllm", "vllm_engine")
    found = quick_engines(tmp_path / "results.json", *sides, RS_ALIGNER_VLLM_PYTHON=str(vllm_python))
    assert set(found["sampled"]) == set(found["greedy"]) == set(sides)
    taken = found["new weights"]["vllm_engine"]
    parts = [seconds for name, seconds in taken.items() if name.startswith("wall of")]
    assert len(parts) == 3
    assert 0 < sum(parts) <= taken["wall"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_engines_that_are_not_here_are_left_out_by_name(tmp_path: Path) -> None:
    nowhere = {"RS_ALIGNER_VLLM_PYTHON": "/nowhere", "RS_ALIGNER_LLAMA_PYTHON": "/nowhere"}
    found = quick_engines(tmp_path / "results.json", "kernels", "vllm", "llama_cpp", **nowhere)
    assert set(found["sampled"]) == {"kernels"}


def test_seconds_of_a_whole_process_tree_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    sides = importlib.import_module("engine_sides")
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    wait = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {spin!r}]).wait()\ninput()"
    process = subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while sides.cpu_seconds(process.pid) < 0.3:  # its child's, alive or not
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
