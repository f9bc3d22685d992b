"""What the scripts end with: one line and a status for what a user can mend, a stack trace for our faults."""

from __future__ import annotations

import ast
import errno
import re
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.cli import scripts
from rs_aligner.cli.errors import one_line_errors
from rs_aligner.config import ConfigError, ExpManagerConfig
from rs_aligner.record.lease import LeaseLost
from rs_aligner.record.manifest import CannotSave
from rs_aligner.record.run import Run
from rs_aligner.reward.protocol import JudgeFailed
from rs_aligner.sample_request import SamplingFailed
from rs_aligner.stopping import Stopped
from rs_aligner.trainers.failures import RanksDiffer
from tests.conftest import ROOT

COMMANDS = [
    scripts.train_rs,
    scripts.train_sft,
    scripts.train_reward_model,
    scripts.generate,
    scripts.serve_reward,
]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError(["model.seed is -1"]), 2, "error: model.seed is -1\n"),
        (ConnectionError("no judge is ready"), 2, "error: no judge is ready\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (JudgeFailed("step 3: half failed"), 1, "error: step 3: half failed\n"),
        (RanksDiffer("step 3 differs"), 1, "error: step 3 differs\n"),
        (LeaseLost("runs/first was taken over"), 1, "error: runs/first was taken over\n"),
        (FloatingPointError("the loss is NaN"), 1, "error: the loss is NaN\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_needs_no_stack_trace_is_one_line_and_a_status(error, status, line, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err == line


AGAIN, MEND = "; start the same command again: ", "; mend that and start again: "


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (JudgeFailed("step 5: half failed"), 1, f"error: step 5: half failed{AGAIN}"),
        (SamplingFailed("no server answers"), 1, f"error: no server answers{AGAIN}"),
        (RanksDiffer("step 5 differs"), 1, f"error: step 5 differs{AGAIN}"),
        (FloatingPointError("the loss is NaN"), 1, f"error: the loss is NaN{AGAIN}"),
        (RuntimeError("NCCL: Connection closed by peer"), 1, f": NCCL: Connection closed by peer{AGAIN}"),
        (Stopped("SIGTERM"), 75, f"stopped (SIGTERM){AGAIN}"),
        (CannotSave("step_000005: no space"), 2, f"error: step_000005: no space{MEND}"),
        (OSError(errno.ENOSPC, "No space"), 2, f"error: no space{MEND}"),
        (MemoryError(), 2, f"error: out of memory: nothing more is known{MEND}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_a_run_is_told_with_where_the_run_goes_on(
    error: BaseException, status: int, line: str, saves: bool, tmp_path: Path, capsys
) -> None:
    class Policy:
        def save(self, folder: Path, counters: dict[str, Any]) -> None:
            folder.mkdir(parents=True)

    config = ExpManagerConfig.model_validate({"explicit_log_dir": str(tmp_path)})

    def fit() -> None:
        with one_line_errors(), Run(config, is_first=True) as run:
            run.open(-1)
            if saves:
                run.save(Policy(), 4, {})
            raise error

    with pytest.raises(SystemExit) as ended:
        fit()
    assert ended.value.code == status
    told = capsys.readouterr().err
    where = f"behind step 4 ({tmp_path}/checkpoints/step_000004)"
    if not saves:
        where = "from the beginning, since it has no checkpoint"
    assert told.endswith(f"{line}the run goes on {where}\n")
    assert told.count("\n") == 1


def test_a_note_of_others_is_no_promise(capsys) -> None:
    error = ValueError("model.seed is -1")
    error.add_note("while the config was read")
    with pytest.raises(SystemExit), one_line_errors():
        raise error
    assert capsys.readouterr().err == "error: model.seed is -1\n"


def test_a_command_that_has_no_run_says_of_a_stop_that_it_starts_again(capsys) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise Stopped("SIGTERM")
    assert ended.value.code == 75
    assert capsys.readouterr().err == "stopped (SIGTERM); start the same command again\n"


def test_what_every_rank_comes_to_one_of_them_says(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise JudgeFailed("step 3: half failed")
    assert ended.value.code == 1
    assert capsys.readouterr().err == ""


def test_a_fault_of_ours_keeps_its_stack_trace_unless_a_command_cannot_go_on_for_it(capsys):
    with pytest.raises(RuntimeError, match="shapes"), one_line_errors():
        raise RuntimeError("shapes differ")
    with pytest.raises(SystemExit) as ended, one_line_errors(RuntimeError):
        raise RuntimeError("Triton failed")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: Triton failed\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError(["a key is wrong"]), 2), (KeyboardInterrupt(), 130)]
)
def test_every_command_goes_through_that_door(command, error, status, monkeypatch, capsys):
    def load_config(*_: object) -> None:
        raise error

    monkeypatch.setattr(scripts, "load_config", load_config)
    with pytest.raises(SystemExit) as ended:
        command({})
    assert ended.value.code == status
    [line] = capsys.readouterr().err.splitlines()
    assert line in ("error: a key is wrong", "error: interrupted")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x"), "no space left on device: runs/a/x"),
        (OSError(errno.EROFS, "Read-only file system", "runs/a"), "read-only file system: runs/a"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files (raise ulimit -n)"),
        (MemoryError(), "out of memory: nothing more is known"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 7 bytes\nand more"),
            "out of memory: DefaultCPUAllocator: can't allocate memory: you tried 7 bytes",
        ),
        (
            ImportError("libx.so: failed to map segment from shared object"),
            "out of memory: libx.so: failed to map segment from shared object",
        ),
    ],
)
def test_what_the_machine_lacks_is_one_line_and_to_be_mended(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_file_that_is_missing_where_nobody_expects_it_keeps_its_trace() -> None:
    with pytest.raises(FileNotFoundError), one_line_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")


def messages(source: str) -> list[str]:
    """The texts of a module that are no docstrings; of an f-string, what is around its values."""
    tree = ast.parse(source)
    expressions = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in expressions
    ]
    return [node.value for node in texts if isinstance(node.value, str)]


def test_nobody_is_sent_to_a_script_that_pip_does_not_bring() -> None:
    scripts = [*(ROOT / "examples").glob("*.py"), *(ROOT / "scripts").rglob("*.sh")]
    names = "|".join(re.escape(script.name) for script in scripts)
    script = re.compile(rf"\bexamples/|\bscripts/\w+\.|(?<![\w/.])({names})(?![\w.])")
    assert script.search("give it to serve_reward.py")
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in (ROOT / "rs_aligner").rglob("*.py")
        for text in messages(path.read_text())
        if script.search(text) and "source checkout" not in text
    ]
    # NeMo-Aligner has a script of that name, whose overrides are translated.
    assert found == ["rs_aligner/config/nemo_scripts.py: train_reward_model.py"]
