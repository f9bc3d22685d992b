"""The ids that a server bars: how it is told of them, and what becomes of logits; vLLM's own part is slow."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis.extra.numpy import arrays

from rs_aligner.commands import serve_rollouts
from rs_aligner.generation.vllm.controls import BARRED
from rs_aligner.rollout_server.barred import MOST_CHARACTERS, ranges_of, variable_of, word_of
from rs_aligner.rollout_server.inside import rs_aligner_barring as barring
from rs_aligner.rollout_server.inside import rs_aligner_guard as guard
from tests.tiny import save_tiny, save_tiny_with_tokenizer

pytestmark = pytest.mark.timeout(60)


def test_names_are_the_same_in_vllms_process_and_outside() -> None:
    assert (barring.VARIABLE, barring.KEY) == (guard.BARRED, BARRED)


@hypothesis.given(arrays(bool, hypothesis.strategies.integers(0, 40)))
def test_ranges_are_of_the_missing_ids(known: np.ndarray) -> None:
    assert barring.ids_of(ranges_of(known)) == np.flatnonzero(~known).tolist()
    assert (word_of(known) is None) == known.all()
    other = np.append(known, [False])
    assert word_of(other) != word_of(known)


def test_a_server_is_told_in_a_few_characters_or_not_at_all() -> None:
    known = np.ones(151_936, dtype=bool)
    assert variable_of(known) is None
    known[151_665:] = known[3] = False
    assert variable_of(known) == f"{word_of(known)} 3,151665-151935"
    known[::2] = False
    assert len(ranges_of(known)) > MOST_CHARACTERS
    assert variable_of(known) is None


def test_the_ids_are_those_that_the_folders_tokenizer_lacks(tmp_path: Path, caplog: Any) -> None:
    folder = save_tiny_with_tokenizer(tmp_path / "model")
    assert serve_rollouts._barred(folder) is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 6}))
    assert str(serve_rollouts._barred(folder)).endswith(" 258-263")
    assert serve_rollouts._barred(save_tiny("llama", tmp_path / "without")) is None
    assert "the server bars no ids of a padded vocabulary: " in caplog.text


WORD, IDS = "word", [1, 4, 5]


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(barring.VARIABLE, f"{WORD} 1,4-5")


def params(word: str | None) -> Any:
    return SimpleNamespace(extra_args=None if word is None else {BARRED: word})


def barred_rows(logits: torch.Tensor) -> list[int]:
    """Rows of which the ids, and no others, are barred; no other row may be."""
    rows = torch.isneginf(logits).any(1).nonzero()[:, 0].tolist()
    for row in rows:
        assert torch.isneginf(logits[row]).nonzero()[:, 0].tolist() == IDS
    return rows


def test_only_rows_that_want_it_are_barred_wherever_they_move(variable: None) -> None:
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))
    rows = barring.Rows(config, torch.device("cpu"), False)

    def update(size: int, removed: Any = (), added: Any = (), moved: Any = ()) -> list[int]:
        added = [(row, params(word), [], []) for row, word in added]
        moved = [(one, other, SimpleNamespace(name=how)) for one, other, how in moved]
        rows.update_state(SimpleNamespace(batch_size=size, removed=removed, added=added, moved=moved))
        return barred_rows(rows.apply(torch.zeros(size, 7)))

    assert update(2, added=[(0, None), (1, None)]) == []
    assert update(4, added=[(2, WORD), (3, None)]) == [2]
    rows.update_state(None)
    assert barred_rows(rows.apply(torch.zeros(4, 7))) == [2]
    assert update(4, moved=[(2, 0, "SWAP")]) == [0]
    assert update(3, removed=[1], moved=[(3, 1, "UNIDIRECTIONAL")]) == [0]
    assert update(2, removed=[1], moved=[(0, 1, "UNIDIRECTIONAL")]) == [1]
    assert update(2, removed=[0, 1], added=[(0, None), (1, None)]) == []


def test_slots_of_the_newer_interface_are_found_by_their_rows(variable: None) -> None:
    rows = barring.Rows(SimpleNamespace(), SimpleNamespace(device=torch.device("cpu"), max_num_reqs=5))
    assert [rows.add_request(slot, params(word)) for slot, word in ((3, WORD), (1, None))] == [True, False]
    rows.apply_staged_writes()
    where = SimpleNamespace(expanded_idx_mapping=torch.tensor([1, 3, 3, 0]))
    assert barred_rows(rows.apply(torch.zeros(4, 7), where)) == [1, 2]
    rows.add_request(3, params(None))
    rows.apply_staged_writes()
    assert barred_rows(rows.apply(torch.zeros(4, 7), where)) == []


def test_who_means_other_ids_is_refused(variable: None) -> None:
    for fine in (None, WORD):
        barring.Rows.validate_params(params(fine))
    with pytest.raises(ValueError, match="is not the word of the ids that this server bars"):
        barring.Rows.validate_params(params("another"))


LOADS = """
import json, sys
from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns as old
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns as new
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcRequestState
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm import SamplingParams
import torch
from types import SimpleNamespace
(one,), (other,) = old([sys.argv[1]]), new([sys.argv[1]])
config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=4))
rows = one(config, torch.device("cpu"), False)
params = SamplingParams(extra_args={"rs_aligner_barred": "word"})
one.validate_params(params)
moved = [(0, 1, MoveDirectionality.SWAP)]
added = [(0, params, [], []), (1, SamplingParams(), [], [])]
rows.update_state(BatchUpdate(2, removed=[], added=added, moved=moved))
states = [torch.zeros(1)] * 4
slots = other(config, LogitsProcRequestState(torch.device("cpu"), 4, 7, *states))
slots.add_request(2, params)
slots.apply_staged_writes()
where = SimpleNamespace(expanded_idx_mapping=torch.tensor([0, 2]))
found = rows.apply(torch.zeros(2, 7)), slots.apply(torch.zeros(2, 7), where)
print(json.dumps([torch.isneginf(logits).nonzero().tolist() for logits in found]))
"""


@pytest.mark.slow
def test_vllm_takes_the_class_for_both_of_its_interfaces(vllm_python: Path, variable: None) -> None:
    inside = str(Path(barring.__file__).parent)
    done = subprocess.run(
        [vllm_python, "-P", "-c", LOADS, "rs_aligner_barring:Barring"],
        env={**os.environ, "PYTHONPATH": inside, "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[[1, number] for number in IDS]] * 2
