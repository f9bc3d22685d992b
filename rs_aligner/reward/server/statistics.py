"""What a judge has done so far, in the text format of Prometheus, over HTTP.

One address has everything: the judge's own figures first, then Triton's (`nv_inference_*`), which it keeps on
a port of its own. Left out on purpose: a client library, for seven figures.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from rs_aligner.rollout import Score, ScoreFailure

_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Statistics:
    """Counters of one judge. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.num_rows = 0
        self.num_failed = 0
        self.num_refused = 0
        self.num_restarts = 0
        self.last_failure = ""
        self._sum = 0.0
        self._calls = [0] * (len(_BUCKETS) + 1)

    def count_call(self, scores: Sequence[Score | ScoreFailure], seconds: float) -> None:
        """Count rows that were judged together."""
        failures = [score.reason for score in scores if isinstance(score, ScoreFailure)]
        with self._lock:
            self.num_rows += len(scores)
            self.num_failed += len(failures)
            self.last_failure = failures[-1] if failures else self.last_failure
            self._sum += seconds
            self._calls[sum(seconds > bound for bound in _BUCKETS)] += 1

    def count_refused(self, num_requests: int) -> None:
        """Count requests that were not judged."""
        with self._lock:
            self.num_refused += num_requests

    def count_restart(self) -> None:
        """Count a start of Triton after the first."""
        with self._lock:
            self.num_restarts += 1

    def text(self, fingerprint: str, counters: Mapping[str, float] | None = None) -> str:
        """All figures, in the text format of Prometheus; `counters` are the judge's own."""
        with self._lock:
            counted: list[tuple[str, str, float]] = [
                ("rows", "Rows that were judged.", self.num_rows),
                ("failed_rows", "Rows that got no score.", self.num_failed),
                ("refused_requests", "Requests that could not be read, or had no access.", self.num_refused),
                ("restarts", "Times that Triton was started again.", self.num_restarts),
                *((name, "Counted by the judge itself.", value) for name, value in (counters or {}).items()),
            ]
            calls, total = list(self._calls), self._sum
        lines = [f'# TYPE judge_info gauge\njudge_info{{fingerprint="{fingerprint}"}} 1']
        for name, what, value in counted:
            lines.append(f"# HELP judge_{name}_total {what}\n# TYPE judge_{name}_total counter")
            lines.append(f"judge_{name}_total {value}")
        lines.append("# HELP judge_call_seconds Time that rows spent in the judge together.")
        lines.append("# TYPE judge_call_seconds histogram")
        so_far = 0
        for bound, count in zip((*_BUCKETS, "+Inf"), calls, strict=True):
            so_far += count
            lines.append(f'judge_call_seconds_bucket{{le="{bound}"}} {so_far}')
        lines.append(f"judge_call_seconds_sum {total:.6f}\njudge_call_seconds_count {so_far}")
        return "\n".join(lines) + "\n"


@contextlib.contextmanager
def metrics_endpoint(address: str, port: int, text: Callable[[], str]) -> Iterator[int]:
    """Serve `text()` at `/metrics`; yields the port, which is a free one for port 0.

    Raises:
        OSError: the address cannot be bound.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            body = text().encode() if self.path == "/metrics" else b"see /metrics\n"
            self.send_response(200 if self.path == "/metrics" else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    server = Server((address.strip("[]"), port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def triton_metrics(port: int | None) -> str:
    """Triton's own figures; empty while it is not there."""
    if port is None:
        return ""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        return response.read().decode() if response.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
