"""Stands in for `python examples/train_rs.py`, `serve_reward.py` and `serve_rollouts.py`.

It keeps to their statuses, signals and files, and needs neither torch nor Triton: a job takes seconds. A
trainer's weights are a digest of its steps. Its settings come as overrides: `steps`; `pace`, seconds a step;
`ends` and `fails_at`, the status that its last rank ends with behind which step; `slow_save`, seconds that
the last rank's save takes longer. A server of rollouts answers with its node and the trainer's token, and has
`breaks`, the status that it ends with when it was asked (1: the first time only).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def serve(settings: dict[str, str]) -> None:
    if settings.get("judge.name") == "no_such":
        sys.exit("error: judge.name is no_such: there is no such judge")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    token = Path(settings["inference.token_file"])
    assert token.stat().st_mode & 0o077 == 0
    print(f"judge ready at http://0.0.0.0:{settings['inference.port']} ({token.read_text()[:0]})", flush=True)
    while True:
        time.sleep(0.1)


def serve_rollouts(settings: dict[str, str]) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node, breaks = os.environ["SLURMD_NODENAME"], int(settings.get("breaks", 0))
    secret, root = Path(settings["inference.token_file"]), Path(settings["weights_root"])
    assert (secret.stat().st_mode & 0o077, settings["inference.host"]) == (0, "0.0.0.0")
    assert settings["pretrained_checkpoint.restore_from_path"] == "model"
    with socket.create_server((node, int(settings["inference.port"]))) as server:
        while True:
            line, _ = server.accept()
            with line:
                line.sendall(f"{node} {secret.read_text()}".encode())
            has_broken = root / f"broken_{node}"
            if breaks == 2 or (breaks == 1 and not has_broken.exists()):
                has_broken.touch()
                print("error: so it should", flush=True)
                sys.exit(breaks)


def find_rollouts(settings: dict[str, str], patience: float = 60) -> None:
    """Ask each server of rollouts by its name, until it answers."""
    token = Path(settings["model.rs.generation.servers.token_file"]).read_text()
    deadline = time.monotonic() + patience
    for endpoint in settings["model.rs.generation.endpoints"].strip("[]").split(","):
        node, port = endpoint.rsplit(":", 1)
        while True:
            try:
                with socket.create_connection((node, int(port)), timeout=5) as line:
                    assert line.makefile().read() == f"{node} {token}"
                    print(f"rollouts from {node}", flush=True)
                    break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def train(settings: dict[str, str]) -> None:
    rank, ranks = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    asked: list[int] = []
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda number, _: asked.append(number))
    run = Path(settings["exp_manager.explicit_log_dir"])
    state_file, steps = run / f"state_{rank}.json", int(settings.get("steps", 4))
    state = json.loads(state_file.read_text()) if state_file.exists() else {"step": 0, "weights": ""}
    assert int(settings["trainer.num_nodes"]) * int(settings["trainer.devices"]) == ranks
    assert Path(settings["remote_rm.token_file"]).stat().st_mode & 0o077 == 0
    if settings.get("model.rs.generation.engine") == "vllm" and rank == 0:
        find_rollouts(settings)
    print(f"rank {rank} begins at step {state['step']}", flush=True)
    ends, fails_at = int(settings.get("ends", 0)), int(settings.get("fails_at", -1))
    while state["step"] < steps:
        if ends and state["step"] == fails_at and (rank == ranks - 1 or ends == 75):
            print("error: so it should", flush=True)
            sys.exit(ends)
        time.sleep(float(settings.get("pace", 0.1)))
        state["step"] += 1
        state["weights"] = hashlib.sha256(f"{state}".encode()).hexdigest()
        if rank == 0:
            with (run / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps(state) + "\n")
        if asked:
            if rank == ranks - 1:
                time.sleep(float(settings.get("slow_save", 0)))
            state_file.write_text(json.dumps(state))
            print(f"rank {rank} saved step {state['step']}", flush=True)
            sys.exit(75)
    (run / f"final_{rank}").write_text(state["weights"])


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    scripts = {"serve_reward.py": serve, "serve_rollouts.py": serve_rollouts, "train_rs.py": train}
    scripts[Path(sys.argv[1]).name](given)
