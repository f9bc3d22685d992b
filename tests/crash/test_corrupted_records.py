"""A run's small records damaged in every way: each damage is found and told in one line, or does no harm.

Figures, attempts, `run.json` and the owner's claim, by the functions that load them at a start, in one
process with a fixed seed. Checkpoints and model folders are in `test_corruptions.py`, the ledger in
`tests/record`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.config import ExpManagerConfig
from rs_aligner.record import lease as leases
from rs_aligner.record.claims import claims_in
from rs_aligner.record.lease import Lease, LeaseLost
from rs_aligner.record.metrics import read_rows
from rs_aligner.record.run import Run
from tests.crash.test_corruptions import contents, flip, restore, truncate, zero
from tests.record.test_attempts import attempt

FIGURES = [{"step": step, "loss": 1.0 / (step + 3), "reward/mean": -0.1234567 * step} for step in range(5)]


class Policy:
    def save(self, folder: Path, counters: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "weights").write_text("w")


def records(folder: Path) -> dict[Path, bytes]:
    """All but `status.json`, which says of every start how it ended."""
    return {path: content for path, content in contents(folder).items() if path.name != "status.json"}


def start(folder: Path, last_step: int = 4) -> None:
    """What a start does in a run's folder before it trains."""
    config = ExpManagerConfig.model_validate({"explicit_log_dir": str(folder)})
    with Run(config, is_first=True, command="train_rs") as run:
        run.prepare(attempt())
        run.open(last_step)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder behind two starts."""
    folder = tmp_path_factory.mktemp("run")
    config = ExpManagerConfig.model_validate({"explicit_log_dir": str(folder)})
    with Run(config, is_first=True, command="train_rs") as run:
        run.prepare(attempt())
        run.open(-1)
        for row in FIGURES:
            run.record(row)
        run.save(Policy(), 4, {})
    start(folder)
    return folder


def damages(folder: Path, rng: random.Random) -> Iterator[tuple[str, Path]]:
    """Damages one file after the other; the damage is there while the caller works, and taken back then."""
    before = contents(folder)
    names = ["metrics.jsonl", "metrics.sums", "run.json", "config.yaml"]
    names += ["config/attempt_01.yaml", "config/attempt_02.yaml"]
    for path in (folder / name for name in names):
        for kind, damage in (("flip", flip), ("truncate", truncate), ("zeros", zero)):
            for _ in range({"flip": 12, "truncate": 4, "zeros": 1}[kind]):
                damage(path, rng)
                yield kind, path
                restore(folder, before)
        path.unlink()
        yield "missing", path
        restore(folder, before)
        for other in names:
            if folder / other != path:
                path.write_bytes((folder / other).read_bytes())
                yield "another's", path
                restore(folder, before)


@pytest.mark.slow
def test_each_damage_of_a_record_is_told_in_one_line_or_does_no_harm(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found: Counter[str] = Counter()
    for kind, path in damages(folder, random.Random(7)):
        caplog.clear()
        damaged = records(folder)
        try:
            start(folder)
        except ValueError as error:
            told = str(error)
            assert "\n" not in told, told
            assert path.name in told or path.stem in told or "config has no attempt" in told, (kind, told)
            assert records(folder) == damaged, "a start that is refused changes nothing"
            found[f"{path.name} told"] += 1
            continue
        assert read_rows(folder / "metrics.jsonl") == FIGURES, kind  # it went on, with what there was
        found[f"{path.name} harmless"] += 1
    assert sum(found.values()) >= 125
    assert found["run.json told"] >= 20
    assert found["config/attempt_02.yaml told"] + found["attempt_02.yaml told"] >= 20
    assert found["metrics.jsonl told"] >= 15
    assert found["run.json harmless"] == 0


def test_each_damage_of_a_claim_costs_its_owner_the_folder_or_makes_others_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody takes over at once from an owner who lives, whatever became of its claim."""
    waited: list[float] = []

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds
            waited.append(seconds)

    rng = random.Random(11)
    caplog.set_level(logging.ERROR)
    for number in range(30):
        owner = Lease(tmp_path / "owner", "it", renew_every=None).take()
        [claim] = claims_in(tmp_path / "owner")
        (flip, truncate, zero)[number % 3](claim.path, rng)
        with pytest.raises(LeaseLost):
            owner.check()
        waited.clear()
        with Lease(tmp_path / "owner", "it", clock=Clock(), renew_every=None) as mine:
            mine.check()
        assert sum(waited) >= leases.SILENCE_SECONDS
