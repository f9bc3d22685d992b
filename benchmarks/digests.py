"""What a change must not change: digests of whole runs, to the bit.

    python benchmarks/digests.py --out /tmp/digests                       this checkout, one rank and two
    python benchmarks/digests.py --out /tmp/digests --root ../before      another one, with the same packages

The runs are those of the quickstart (supervised training, rejection sampling, then a file of answers of the
trained policy) and of stories, at the settings of their configs, judged in the run's own process. Of each
there is a digest of the ledger, of the figures without times and of the final weights, and one of the
answers. Give two checkouts the same `--out`, since rows without an id are named after their file. The digests
depend on the processor and on the packages, so they are compared and never recorded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("RS_ALIGNER_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()


def digest_of(run: Path) -> Iterator[tuple[str, str]]:
    """Names and digests of what a run has left."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    kept = [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]
    yield "metrics", _sha(json.dumps(kept, sort_keys=True).encode())
    for name, pattern in (("ledger", "rollouts/*.jsonl"), ("weights", "final/*.safetensors")):
        files = sorted(run.glob(pattern))
        if files:
            yield name, _sha(*(file.read_bytes() for file in files))


def _sha(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]


class Runs:
    """Starts the scripts of a checkout.

    Args:
        root: the checkout.
        out: a folder for the runs.
        ranks: of each run.
    """

    def __init__(self, root: Path, out: Path, ranks: int) -> None:
        self.root, self.out, self.ranks = root, out, ranks

    def script(self, name: str, *arguments: str, devices: bool = True) -> None:
        """Run one to its end."""
        environment = {
            **os.environ,
            "ARITHMETIC": str(self.out),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.root),
            "RS_ALIGNER_TEST_DATA": str(DATA),
        }
        command = [sys.executable, str(self.root / "examples" / name), *arguments]
        if devices:
            command.append(f"trainer.devices={self.ranks}")
        if name.startswith("train") and self.ranks > 1:
            command.append("model.micro_batch_size=8")
        log = self.out / "log"
        with log.open("ab") as opened:
            done = subprocess.run(
                command,
                check=False,
                env=environment,
                cwd=self.root,
                stdout=opened,
                stderr=opened,
                timeout=1200,
            )
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with status {done.returncode}: {log}")

    def everything(self) -> dict[str, str]:
        """Make all runs; returns their digests."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        here = ("remote_rm.in_process=true", "exp_manager.create_tensorboard_logger=false")
        self.script("arithmetic/make_task.py", "--out", str(self.out / "task"), "--seed", "0", devices=False)
        self.script("train_sft.py", "--config-name", "arithmetic_sft", here[1])
        self.script("train_rs.py", "--config-name", "arithmetic", "+remote_rm.judge.name=exact_answer", *here)
        answers = self.out / "answers.jsonl"
        self.script(
            "generate.py",
            *(f"output={answers}", f"pretrained_checkpoint.restore_from_path={self.out}/rs/final"),
            *(f"model.data.files={self.out}/task/validation.jsonl", "model.data.num_prompts=200"),
            *("model.answers.num_rollouts_per_prompt=4", "model.answers.choose=majority"),
            "model.answers.length_params.max_length=8",
        )
        stories = self.out / "stories"
        self.script(
            *("train_rs.py", "--config-name", "stories", "+remote_rm.judge.name=sentiment", *here),
            f"exp_manager.explicit_log_dir={stories}",
        )
        runs = {"sft": self.out / "sft", "rs": self.out / "rs", "stories": stories}
        found = {f"{name}: {what}": sha for name, run in runs.items() for what, sha in digest_of(run)}
        return found | {"answers": _sha(answers.read_bytes())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs; emptied before each")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    for ranks in asked.ranks:
        for name, sha in Runs(asked.root.resolve(), asked.out.resolve(), ranks).everything().items():
            print(f"{ranks} {'rank ' if ranks == 1 else 'ranks'}  {name:<18} {sha}", flush=True)


if __name__ == "__main__":
    main()
