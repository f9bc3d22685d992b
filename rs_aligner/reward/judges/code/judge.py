"""The program in a response runs against its row's tests; the reward is the share of them that it passes.

Expected outputs stay in this process, and assertions in one of their own: the program's process has neither,
so it can only pass a test by giving the right answer. A wrong answer is a score, whatever the program does:
ends, hangs, or eats its memory. Where the sandbox fails there is none. Left out on purpose: other languages
than Python.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Literal

from rs_aligner.reward.judges.base import BadSetting, Metadata, Value, content_hash, whole_answers
from rs_aligner.reward.judges.code.extract import completed, program_in
from rs_aligner.reward.judges.code.outcome import assertions_passed, calls_passed, same_text
from rs_aligner.reward.judges.code.row import Assertions, Keys, Pairs, read_tests
from rs_aligner.rollout import ScoreFailure
from rs_aligner.sandbox import Job, Limits, Sandbox, SandboxError
from rs_aligner.sandbox.jobs import content_of, memory_file
from rs_aligner.sandbox.probe import NOT_PROTECTED, found

_logger = logging.getLogger("rs_aligner")
_MOST_RESULTS = 1 << 22
_Passed = tuple[int, int, bool]  # how many, of how many, and whether the time was over


class CodeJudge:
    """Reward the share of a row's tests that the program in the response passes.

    Components: `passed`, 1.0 if it passed all, `tests` (the share), `timed_out`, `has_program`.

    Args:
        keys: what data rows call things, where they do so otherwise: see `row.Keys`.
        score: `share`, or `all` for 1.0 where all tests pass and else 0.0.
        tolerance: by how much numbers of an output may differ, absolutely and in proportion.
        memory: MiB that a program may take.
        namespaces: `auto`: private files and no other process in sight where the system allows it;
            `required`; `never`.
        python: an interpreter whose packages programs may use; None for this one with the standard library
            alone.
        time_limit: seconds that a row's tests may take together.
        workers: how many rows are judged at once.

    Raises:
        BadSetting: a setting that cannot be, or a machine that cannot keep to it.
    """

    takes_calls_at_once = True

    def __init__(
        self,
        keys: Mapping[str, str] = MappingProxyType({}),
        score: Literal["share", "all"] = "share",
        tolerance: float = 0.0,
        memory: int = 512,
        namespaces: Literal["auto", "required", "never"] = "auto",
        python: str | None = None,
        time_limit: float | None = 5.0,
        workers: int = 1,
    ) -> None:
        _check(score, namespaces, memory, tolerance, time_limit)
        assert time_limit is not None
        self._keys = _keys(keys)
        self._is_share, self._tolerance, self._seconds = score == "share", tolerance, float(time_limit)
        self._limits = Limits(memory=memory << 20)
        try:
            self._box = Sandbox(self._limits, workers, namespaces, python)
        except SandboxError as error:
            raise BadSetting(
                f"judge.kwargs: programs cannot be run here as they have to be: {error}"
            ) from None
        try:
            self.remarks = tuple(found(self._box, self._limits))
        except SandboxError as error:
            self._box.close()
            raise BadSetting(f"judge.name=code: programs cannot be run safely here: {error}") from None
        for line in self.remarks:
            is_warning = line.startswith(NOT_PROTECTED)
            _logger.log(logging.WARNING if is_warning else logging.INFO, "judge: %s", line)
        self.fingerprint = content_hash(
            "code", asdict(self._keys), score, tolerance, memory, self._seconds, self._box.version, python
        )
        self._threads = ThreadPoolExecutor(workers, "code-judge")
        self._lock = threading.Lock()
        self._num_late = 0

    @property
    def counters(self) -> dict[str, int]:
        """Rows whose time was over, and starts of the sandbox after its first."""
        return {"timed_out_rows": self._num_late, "worker_restarts": self._box.num_starts - 1}

    def score_texts(
        self, prompts: list[str], responses: list[str], metadata: list[Metadata]
    ) -> Sequence[Value]:
        """A value a row; a row whose tests cannot be read, or that the sandbox failed, is a failure."""
        try:
            rows = list(zip(whole_answers(responses, metadata), metadata, strict=True))
            return list(self._threads.map(self._score, *zip(*rows, strict=True))) if rows else []
        except RuntimeError:  # it was closed in between
            return [ScoreFailure("the judge was closed")] * len(responses)

    def close(self) -> None:
        """End all programs."""
        self._box.close()
        self._threads.shutdown()

    def _score(self, response: str, row: Metadata) -> Value:
        try:
            tests = read_tests(row, self._keys)
            program = program_in(response)
            passed, number, is_late = self._run(program, tests) if program else (0, 1, False)
        except ValueError as error:
            return ScoreFailure(f"row {row.get('id', '(no id)')}: {error}")
        except SandboxError as error:
            return ScoreFailure(str(error))
        with self._lock:
            self._num_late += is_late
        share, passed_all = passed / number, float(passed == number)
        return {
            "reward": share if self._is_share else passed_all,
            "passed": passed_all,
            "tests": share,
            "timed_out": float(is_late),
            "has_program": float(bool(program)),
        }

    def _run(self, program: str, tests: Assertions | Pairs) -> _Passed:
        with self._box.slot() as slot:
            if isinstance(tests, Assertions):
                return self._assertions(slot, program, tests)
            return (
                self._calls(slot, program, tests) if tests.function else self._scripts(slot, program, tests)
            )

    def _assertions(self, slot: int, program: str, tests: Assertions) -> _Passed:
        if tests.entry:
            program = completed(program, tests.prompt, tests.entry)
        verdict = memory_file()
        try:
            jobs = [
                Job("tests", asdict(tests), {"verdict": verdict}),
                Job("program", {"program": program}),
            ]
            ends = self._box.run(slot, jobs, self._seconds)
            passed, number = assertions_passed(content_of(verdict, self._limits.output))
        finally:
            os.close(verdict)
        # One of them is late first; where all is passed, the program only had nothing more to do.
        return passed, number, passed < number and any(end.is_late for end in ends)

    def _calls(self, slot: int, program: str, tests: Pairs) -> _Passed:
        results = memory_file()
        try:
            calls = [arguments for arguments, _ in tests.pairs]
            payload = {"program": program, "name": tests.function, "calls": calls}
            (end,) = self._box.run(slot, [Job("calls", payload, {"results": results})], self._seconds)
            wanted = [values for _, values in tests.pairs]
            passed = calls_passed(content_of(results, _MOST_RESULTS), wanted, self._tolerance)
        finally:
            os.close(results)
        return passed, len(wanted), end.is_late

    def _scripts(self, slot: int, program: str, tests: Pairs) -> _Passed:
        """A process for each input; when the row's time is over, what is left has not passed."""
        deadline, passed = time.monotonic() + self._seconds, 0
        for given, wanted in tests.pairs:
            said, is_late = self._output(slot, program, given, deadline - time.monotonic())
            if is_late:
                return passed, len(tests.pairs), True
            passed += said is not None and same_text(said, wanted, self._tolerance)
        return passed, len(tests.pairs), False

    def _output(self, slot: int, program: str, given: str, seconds: float) -> tuple[str | None, bool]:
        """What a program writes, None if it ended otherwise than well; and whether its time was over."""
        if seconds <= 0:
            return None, True
        reads, writes = memory_file(given.encode(errors="surrogatepass")), memory_file()
        try:
            job = Job("script", {"program": program}, {"stdin": reads, "stdout": writes})
            (end,) = self._box.run(slot, [job], seconds)
            if end.status:
                return None, end.is_late
            return content_of(writes, self._limits.output).decode(errors="replace"), False
        finally:
            os.close(reads)
            os.close(writes)


def _keys(given: Mapping[str, str]) -> Keys:
    known = [field.name for field in fields(Keys)]
    for name, value in given.items():
        if name not in known or not isinstance(value, str):
            raise BadSetting(
                f"judge.kwargs.keys.{name} is {value!r}: there are {', '.join(known)}, each a row's key"
            )
    return Keys(**given)


def _check(score: str, namespaces: str, memory: int, tolerance: float, time_limit: float | None) -> None:
    for key, value, allowed in (
        ("score", score, ("share", "all")),
        ("namespaces", namespaces, ("auto", "required", "never")),
    ):
        if value not in allowed:
            raise BadSetting(f"judge.kwargs.{key} is {value!r}: should be one of {', '.join(allowed)}")
    if not isinstance(memory, int) or memory < 128:
        raise BadSetting(f"judge.kwargs.memory is {memory!r}: should be MiB, at least 128")
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < 1:
        raise BadSetting(f"judge.kwargs.tolerance is {tolerance!r}: should be in [0, 1)")
    if time_limit is None:
        raise BadSetting("judge.time_limit is null: a program may run for ever, so set the seconds of a row")
