"""A stand-in for vLLM's Python, with faults that a real one cannot be made to show.

`stand_in.py FAULT COMMAND...` is called as that Python is.

It takes the command line of `launch`, runs what `-c` has as Python does, and serves the few routes that are
asked, by the variables that the guard reads. `test_served.py` has the real one.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ERROR = "(EngineCore pid=7) ERROR 11-27 03:52:58 [core.py:1512] {}"


def main(fault: str, arguments: list[str]) -> None:
    if "-c" in arguments:  # the first start, which becomes the second
        where = arguments.index("-c")
        sys.argv = ["-c", *arguments[where + 2 :]]
        exec(arguments[where + 1], {})
    print("starting, with", os.environ.get("RS_ALIGNER_ROLLOUTS_TOKEN") and "a token", flush=True)
    if fault == "dies":
        sys.exit("\n".join(map(ERROR.format, ["Traceback:", "ValueError: no such layer"])))
    if fault == "bad switch":
        sys.exit("api_server.py: error: unrecognized arguments: --nonsense")
    if fault == "never ready":
        time.sleep(600)
    serve(fault, int(arguments[arguments.index("--port") + 1]))


def serve(fault: str, port: int) -> None:
    health = {"status": 200}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, body: object) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if self.path == "/health":
                self.answer(health["status"], {})
                return
            about = {"vllm": "0.0", "dtype": "float32", "max_length": 8, "lora_rank": None}
            self.answer(200, {**about, "weights_root": os.environ["RS_ALIGNER_WEIGHTS_ROOT"]})

        def do_POST(self) -> None:
            if fault == "cannot compute":
                for line in ("RuntimeError: heads of 8", "RuntimeError: Worker failed with error 'x'"):
                    print(ERROR.format(line), flush=True)
                self.answer(500, {"error": {"message": "EngineCore encountered an issue."}})
                return
            self.answer(200, {"choices": []})
            if fault == "engine dies":
                print(ERROR.format("RuntimeError: out of pages"), flush=True)
                health["status"] = 503
            if fault == "ends":
                print(ERROR.format("RuntimeError: killed"), flush=True)
                threading.Timer(0.2, os._exit, (1,)).start()

        def log_message(self, *_: object) -> None: ...

    if fault == "stays":
        import signal

        import rs_aligner_guard  # as vLLM does, by the path that it is given

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rs_aligner_guard.GRACE_SECONDS = 0.2
        rs_aligner_guard.Guard(None)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def python_with(fault: str, folder: Path) -> Path:
    """A program that is called as a Python is, and fails in this way."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{fault}" "$@"\n')
    program.chmod(0o755)
    return program


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
