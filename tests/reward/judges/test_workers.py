"""A slow judge over several processes: rows that hang are shared, and cost the others nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rs_aligner.config import JudgeConfig
from rs_aligner.reward.client.in_process import LocalJudge
from rs_aligner.reward.counters import counters_of
from rs_aligner.reward.judges import load_judge, score_rows
from rs_aligner.reward.judges.combined import StandardisedJudge
from rs_aligner.reward.judges.spread import GOOD_ROWS, Call, Spread
from rs_aligner.reward.server.scorer import Scorer
from rs_aligner.rollout import Score, ScoreFailure
from tests.reward.judges.limited import Make, limited_judges, worker_processes

pytestmark = pytest.mark.timeout(120)

JUDGE = """
import os, pathlib, time

def judge(prompts, responses, metadata, waits_for=None):
    for response in responses:
        while response == "loop":
            time.sleep(1)
        if response == "die":
            os._exit(3)
        while response == "wait" and not pathlib.Path(waits_for).exists():
            time.sleep(0.01)
    return [float(len(response)) for response in responses]
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with limited_judges(tmp_path, JUDGE, seconds=0.5) as start:
        yield start


def score(judge: Any, responses: list[str]) -> list[Score | ScoreFailure]:
    n = len(responses)
    return score_rows(judge.score_texts, ([""] * n, responses, [{}] * n), max_rows=64)


@pytest.mark.slow
def test_rows_that_hang_are_shared_by_count_and_all_others_have_their_scores(make: Make) -> None:
    judge = make(workers=4)
    responses = ["a" * i if i % 4 else "loop" for i in range(256)]
    random.Random(3).shuffle(responses)
    scores = score(judge, responses)
    late = ScoreFailure("the judge took more than 0.5 s over this row (judge.time_limit)")
    assert scores == [late if text == "loop" else Score(float(len(text))) for text in responses]
    waits, restarts = judge._spread.waits, [worker.num_starts - 1 for worker in judge._workers]
    assert max(waits) <= 64 / 4 + 1, waits
    assert all(again <= hung for again, hung in zip(restarts, waits, strict=True))
    assert judge.counters == {"timed_out_rows": 64, "worker_restarts": sum(restarts)}


def test_a_row_that_hangs_holds_up_neither_other_rows_nor_other_calls(make: Make, tmp_path: Path) -> None:
    judge = make(workers=2, time_limit=None, waits_for=str(tmp_path / "go"))
    local = StandardisedJudge(judge, 0.0, 1.0)
    found: list[Any] = []
    slow = threading.Thread(target=lambda: found.extend(score(local, ["wait"])))
    slow.start()
    assert score(local, ["a", "bb", "ccc"]) == [Score(i, {"raw": i}) for i in (1.0, 2.0, 3.0)]
    assert slow.is_alive()
    (tmp_path / "go").touch()
    slow.join(60)
    assert found == [Score(4.0, {"raw": 4.0})]


def test_whoever_calls_a_judge_calls_it_from_several_threads_where_it_says_that_it_can() -> None:
    """So a batch with a row that hangs does not keep the others waiting, in process and in the server."""

    class Meeting:
        """Each of two calls waits for the other."""

        fingerprint = "f"
        takes_calls_at_once = True
        barrier = threading.Barrier(2, timeout=60)

        def score_texts(self, prompts: Any, responses: Any, metadata: Any) -> list[float]:
            self.barrier.wait()
            return [1.0] * len(responses)

        def close(self) -> None: ...

    import numpy as np

    text = np.array([[b"{}"]], dtype=object)
    request = {"prompts": text, "responses": text, "metadata": text, "row_ids": text}
    local, scorer = LocalJudge(Meeting(), 8), Scorer(Meeting(), 8)

    class Request:
        data, parameters = request, None

    for ask in (lambda: local.infer(request, 60.0), lambda: scorer([Request()])[0]):
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(ask())) for _ in range(2)]  # noqa: B023  # called in this turn
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [answer["rewards"].tolist() for answer in answers] == [[[1.0]], [[1.0]]]


def test_scores_and_their_order_are_the_same_whatever_the_number_of_workers(make: Make) -> None:
    responses = ["a" * (i % 7) if i % 30 else "die" for i in range(90)]
    one, three = score(make(workers=1), responses), score(make(workers=3), responses)
    assert one == three
    assert [text for text, score in zip(responses, one, strict=True) if isinstance(score, ScoreFailure)] == [
        "die"
    ] * 3


def test_all_workers_end_with_their_parent_even_when_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    code = (
        "import threading\n"
        "from rs_aligner.reward.judges.limit import LimitedJudge\n"
        f"judge = LimitedJudge('{tmp_path}/judge.py:judge', {{}}, 50.0, 3)\n"
        "threading.Thread(target=judge.score_texts, args=([''] * 3, ['loop'] * 3, [{}] * 3)).start()\n"
        "print(flush=True)\n"
        "threading.Event().wait(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        workers = worker_processes(parent.pid)
        assert len(workers) == 3
        os.kill(parent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []


def test_what_cannot_be_loaded_leaves_no_worker(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(ValueError, match=r"died while it was loaded \(exit status 3\)"):
        load_judge(JudgeConfig(function=f"{tmp_path}/exits.py:judge", workers=3))
    assert worker_processes() == []


def test_workers_are_refused_where_a_judge_has_none() -> None:
    assert (
        JudgeConfig.model_validate({"name": "regex", "kwargs": {"pattern": "a"}, "workers": 2}).workers == 2
    )
    (line,) = JudgeConfig(name="exact_answer", workers=2).problems("remote_rm.judge")
    assert "remote_rm.judge.workers is 2" in line
    assert "regex" in line
    parts = {"parts": {"a": {"name": "exact_answer"}}, "workers": 2}
    (line,) = JudgeConfig.model_validate(parts).problems("judge")
    assert "judge.parts.*.workers" in line


def test_a_regex_is_spread_too_and_parts_add_up_what_they_count() -> None:
    parts = {
        name: {"name": "regex", "kwargs": {"pattern": "(a*)*b"}, "workers": 2, "time_limit": 1}
        for name in ("one", "two")
    }
    judge = load_judge(JudgeConfig.model_validate({"parts": parts}))
    try:
        found = score(judge, ["b", "a" * 60])
        assert found[0] == Score(2.0, {"one": 1.0, "two": 1.0})
        assert isinstance(found[1], ScoreFailure)
        assert found[1].is_late
        assert counters_of(judge)["timed_out_rows"] == 2
        assert judge.takes_calls_at_once  # type: ignore[attr-defined]  # what it has
    finally:
        judge.close()


def test_rows_go_alone_after_one_that_hung_and_together_again_after_many_good_ones() -> None:
    spread = Spread(1)
    call = Call("score_texts", [list(range(10 * GOOD_ROWS))])
    spread.put(call)
    share = spread.take(0)
    assert share is not None
    assert share.num_rows == 10 * GOOD_ROWS, "one worker is trusted at first"
    spread.lost(0, share, "late", late=True)
    sizes = []
    for row in range(10 * GOOD_ROWS):
        share = spread.take(0)
        assert share is not None
        assert share.num_rows == 1, "what was lost together is tried alone"
        if row == 5:
            spread.lost(0, share, "late", late=True)
        else:
            spread.found(share, [Score(0.0)])
    assert call.done.is_set()
    spread.put(Call("score_texts", [list(range(100))]))
    while sum(sizes) < 100:
        share = spread.take(0)
        assert share is not None
        sizes.append(share.num_rows)
        if len(sizes) == 2:
            spread.lost(0, share, "late", late=True)
            break
        spread.found(share, [Score(0.0)] * share.num_rows)
    assert sizes == [9, 10], "a row for each 32 that went well"
    assert spread.waits == [3]


def test_a_worker_that_was_waited_for_more_often_lets_one_that_starts_go_first() -> None:
    spread = Spread(2)
    spread.put(Call("score_texts", [list(range(8))]))
    first, second = spread.take(0), spread.take(1)
    assert first is not None
    assert second is not None
    spread.lost(0, first, "late", late=True)
    spread.started(0)
    spread.lost(1, second, "died", late=False)
    taken: list[Any] = []
    ahead = threading.Thread(target=lambda: taken.append(spread.take(0)))
    ahead.start()
    ahead.join(0.2)
    assert ahead.is_alive()
    spread.started(1)
    ahead.join(60)
    assert taken[0].num_rows == 1
    spread.close()


def test_a_config_error_names_workers_that_are_no_count() -> None:
    with pytest.raises(ValueError, match="workers"):
        JudgeConfig(name="regex", workers=0)
