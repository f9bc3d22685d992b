"""What the judge's client costs, how much it holds, and how well judging hides behind generating.

    python benchmarks/judge.py                  about four minutes
    python benchmarks/judge.py --quick          smaller, under a minute

Real servers (`examples/serve_reward.py`) on this machine, each measurement against its own limit:

    cost         4,096 rows scored through the client, against the same server fed ready-made requests of the
                 same size by bare threads, and against the judge called as a function (nothing else)
    memory       10,000 rollouts of 20 kB each, handed in far faster than they are judged: the most that
                 waited, and how much the process grew, against a client that takes them all in
    overlap      a step with a judge that takes as long as generation, against the longer of the two
    throughput   rows a second with one server and with two, whose judges sleep like one on its own device

Medians over the repeats; sides alternate. Results go to `--out` as JSON beside a table on the screen.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from rs_aligner.address import Address
from rs_aligner.config import EndpointConfig, JudgeConfig, RemoteRMConfig
from rs_aligner.remote.errors import TransportError
from rs_aligner.remote.kserve import Arrays
from rs_aligner.remote.listening import any_free_port
from rs_aligner.remote.triton import TritonConnection
from rs_aligner.reward.client import RemoteGPTRMClient
from rs_aligner.reward.judges import load_judge
from rs_aligner.reward.protocol import text_request, text_row
from rs_aligner.rollout import Prompt, Rollout, Score

ROOT = Path(__file__).resolve().parents[1]
BATCH, IN_FLIGHT = 64, 4
GIVE_UP_SECONDS = 60.0
TARGETS = {"cost": 1.5, "overlap": 1.15}
SLEEPER = """
import time

def judge(prompts, responses, metadata, seconds_per_row=0.0):
    time.sleep(seconds_per_row * len(responses))
    return [float(len(response)) for response in responses]
"""
STORY = "the little cat was very happy and ran to the sad old tree where a good friend gave it some bad soup"
WORDS = STORY.split()


def rollouts(count: int, words: int = 60) -> list[tuple[Prompt, Rollout]]:
    """Rows like short stories, all different, each a little longer or shorter than the next."""
    rows = []
    for number in range(count):
        length = words // 2 + number * 7 % words
        text = " ".join(WORDS[(number * 13 + place * 5) % len(WORDS)] for place in range(length))
        prompt = Prompt(f"p{number // 8}", "Once upon a time", (1,) * 5, {"id": number, "answer": "7"})
        rows.append((prompt, Rollout(number // 8, number % 8, (2,) * length, f"{text} {number}", "stop")))
    return rows


@contextlib.contextmanager
def served(*overrides: str) -> Iterator[int]:
    """A server on a free port, gone at the end."""
    port = any_free_port()
    with tempfile.TemporaryDirectory(prefix="bench_") as scratch:
        (Path(scratch) / "sleeper.py").write_text(SLEEPER)
        with (Path(scratch) / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    sys.executable,
                    str(ROOT / "examples/serve_reward.py"),
                    f"inference.port={port}",
                    *overrides,
                ],
                cwd=scratch,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            with RemoteGPTRMClient(config(port, startup_timeout=60)) as client:
                client.wait_until_ready()
            yield port
        finally:
            server.terminate()
            server.wait(timeout=30)


def sleeping(seconds_per_row: float) -> list[str]:
    """A judge that takes this long and next to no processor."""
    return ["judge.function=sleeper.py:judge", f"judge.kwargs={{seconds_per_row: {seconds_per_row}}}"]


def config(*ports: int, **settings: Any) -> RemoteRMConfig:
    servers = tuple(EndpointConfig(ip="127.0.0.1", port=port) for port in ports)
    sizes = {"max_batch_size": BATCH, "max_in_flight": IN_FLIGHT}
    return RemoteRMConfig(endpoints=servers, **{**sizes, **settings})


def through_the_client(port: int, rows: list[tuple[Prompt, Rollout]]) -> float:
    """Seconds from the first row handed in to the last score."""
    with RemoteGPTRMClient(config(port)) as client:
        client.wait_until_ready()
        began = time.perf_counter()
        futures = [client.submit(*row) for row in rows]
        client.flush()
        assert all(isinstance(future.result(), Score) for future in futures)
        return time.perf_counter() - began


def by_bare_threads(port: int, requests: list[Arrays]) -> float:
    """Seconds for requests that are all made beforehand; nothing is looked at but that there is an answer."""
    waiting, lock = list(requests), threading.Lock()

    def send() -> None:
        connection = TritonConnection(Address("127.0.0.1", port), "reward_model")
        while True:
            with lock:
                if not waiting:
                    return
                request = waiting.pop()
            try:
                assert len(connection.infer(request, timeout=60)["rewards"])
            except TransportError:
                if time.perf_counter() - began > GIVE_UP_SECONDS:
                    raise
                time.sleep(0.5)  # Triton broke, and is being started again
                with lock:
                    waiting.append(request)

    threads = [threading.Thread(target=send) for _ in range(IN_FLIGHT)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def as_a_function(judge: JudgeConfig, rows: list[tuple[Prompt, Rollout]]) -> float:
    """Seconds of the judge alone, in this process, in the same batches."""
    loaded = load_judge(judge)
    began = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        prompts, responses = [p.text for p, _ in part], [r.text for _, r in part]
        loaded.score_texts(prompts, responses, [p.metadata for p, _ in part])
    seconds = time.perf_counter() - began
    loaded.close()
    return seconds


def cost(num_rows: int, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": num_rows, "target": TARGETS["cost"]}
    rows = rollouts(num_rows)
    encoded = [text_row(*row) for row in rows]
    requests = [text_request(encoded[start : start + BATCH]) for start in range(0, num_rows, BATCH)]
    for name in ("sentiment", "exact_answer"):
        sides: dict[str, Callable[[], float]]
        with served(f"judge.name={name}") as port:
            ids = "row_ids" in TritonConnection(Address("127.0.0.1", port), "reward_model").offer(10).inputs
            asked = [with_ids(request) if ids else request for request in requests]
            sides = {
                "client": lambda port=port: through_the_client(port, rows),
                "server fed ready-made requests": lambda port=port, asked=asked: by_bare_threads(port, asked),
                "judge as a function": lambda name=name: as_a_function(JudgeConfig(name=name), rows),
            }
            seconds = alternate(sides, repeats)
        best = seconds["server fed ready-made requests"]
        found[name] = {"seconds": seconds, "ratio": median(seconds["client"]) / median(best)}
        say(f"cost, {name}: {found[name]['ratio']:.2f} times the server's time")
    return found


def with_ids(request: Arrays) -> Arrays:
    column = request["prompts"].copy()
    column[:, 0] = [b"row-%d" % number for number in range(len(column))]
    return {**request, "row_ids": column}


def alternate(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each side, measured in turn; the first turn warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            took = run()
            if turn:
                seconds[name].append(round(took, 4))
    return seconds


def memory(num_rollouts: int, kilobytes: int = 20) -> dict[str, Any]:
    """Growth of this process while rollouts come much faster than they are judged."""
    found: dict[str, Any] = {"rollouts": num_rollouts, "kB each": kilobytes}
    with served(*sleeping(0.0005)) as port:
        for name, room in (("bounded", 512), ("all taken in", num_rollouts)):
            found[name] = {
                "max_queued": room,
                **flood(config(port, max_queued=room), num_rollouts, kilobytes),
            }
            one = found[name]
            say(f"memory, {name}: grew by {one['grew_MiB']:.0f} MiB, most waiting {one['most']}")
    return found


def flood(cfg: RemoteRMConfig, count: int, kilobytes: int) -> dict[str, Any]:
    process, most, grew = psutil.Process(), 0, 0
    prompt = Prompt("p", "Once", (1,), {})
    with RemoteGPTRMClient(cfg) as client:
        client.wait_until_ready()
        before = process.memory_info().rss
        futures = []
        for number in range(count):
            text = f"{number} " * (kilobytes * 1000 // len(f"{number} "))
            futures.append(client.submit(prompt, Rollout(0, number, (1,), text, "stop")))
            if number % 100 == 0:
                most = max(most, sum(not future.done() for future in futures))
                grew = max(grew, process.memory_info().rss - before)
        client.flush()
        assert all(isinstance(future.result(), Score) for future in futures)
    return {"most": most, "grew_MiB": round(grew / 2**20, 1)}


def overlap(count: int, seconds: float, repeats: int) -> dict[str, Any]:
    """A step's time with a judge as slow as generation, beside either alone."""
    rows, each = rollouts(count), seconds / count

    def step(port: int, pause: float) -> float:
        with RemoteGPTRMClient(config(port)) as client:
            client.wait_until_ready()
            began = time.perf_counter()
            futures = []
            for number, row in enumerate(rows, start=1):
                time.sleep(max(0.0, began + number * pause - time.perf_counter()))  # the rollout is generated
                futures.append(client.submit(*row))
            client.flush()
            assert all(isinstance(future.result(), Score) for future in futures)
            return time.perf_counter() - began

    with served(*sleeping(each)) as slow, served(*sleeping(0.0)) as quick:
        took = alternate(
            {
                "generation alone": lambda: step(quick, each),
                "judge alone": lambda: step(slow, 0.0),
                "both": lambda: step(slow, each),
            },
            repeats,
        )
    longer = max(median(took["generation alone"]), median(took["judge alone"]))
    ratio = median(took["both"]) / longer
    say(f"overlap: a step takes {ratio:.3f} times the longer of generation and judge")
    return {"rollouts": count, "seconds": took, "ratio": ratio, "target": TARGETS["overlap"]}


def throughput(count: int, repeats: int) -> dict[str, Any]:
    rows = rollouts(count)

    def score(*ports: int) -> float:
        with RemoteGPTRMClient(config(*ports)) as client:
            client.wait_until_ready()
            began = time.perf_counter()
            futures = [client.submit(*row) for row in rows]
            client.flush()
            assert all(isinstance(future.result(), Score) for future in futures)
            return time.perf_counter() - began

    with served(*sleeping(0.002)) as first, served(*sleeping(0.002)) as second:
        took = alternate({"one": lambda: score(first), "two": lambda: score(first, second)}, repeats)
    ratio = median(took["one"]) / median(took["two"])
    say(f"throughput: two servers {ratio:.2f} times one")
    return {"rows": count, "seconds": took, "ratio": ratio}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(results: dict[str, Any]) -> str:
    rows = [("", "measured", "target")]
    for name in ("sentiment", "exact_answer"):
        if "cost" in results:
            rows.append((f"client's cost, {name}", f"{results['cost'][name]['ratio']:.2f}x", "1.5x"))
    if "memory" in results:
        bounded, unbounded = results["memory"]["bounded"], results["memory"]["all taken in"]
        grew = f"{bounded['grew_MiB']:.0f} MiB (all taken in: {unbounded['grew_MiB']:.0f})"
        rows.append((f"growth with {results['memory']['rollouts']:,} queued", grew, "bounded"))
    if "overlap" in results:
        rows.append(("a step, judge as slow as generation", f"{results['overlap']['ratio']:.3f}x", "1.15x"))
    if "throughput" in results:
        rows.append(("two servers", f"{results['throughput']['ratio']:.2f}x", "above 1x"))
    return "\n".join(f"{name:<38}{value:<36}{target}" for name, value, target in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default="cost,memory,overlap,throughput")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="where to write the results as JSON")
    args = parser.parse_args()
    repeats, small = (1, 8) if args.quick else (args.repeats, 1)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "cost": lambda: cost(4096 // small, repeats),
        "memory": lambda: memory(10_000 // small),
        "overlap": lambda: overlap(1024 // small, 8.0 / small, repeats),
        "throughput": lambda: throughput(2048 // small, repeats),
    }
    results = {name: parts[name]() for name in args.parts.split(",")}
    print(table(results))
    if args.out:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        args.out.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
