"""The commands that read a config: Hydra composes it from `conf/` and the overrides, `scripts` does the rest.

`python examples/train_rs.py` and `rs-aligner train` are the same call of this. Left out on purpose: what the
config means (`config`), and what is done with it (`scripts`, `commands`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rs_aligner.cli import help as helps
from rs_aligner.exit_status import FINISHED, TO_BE_MENDED

if TYPE_CHECKING:
    from rs_aligner.cli.arguments import Arguments

PACKAGE = Path(__file__).resolve().parents[1]
COLLECTED_AFTER = (50_000, 10, 10)
"""How many new objects the collector of cycles waits for (Python's own number is 700).

Imports make a million objects, hardly any of them garbage, and looking for it is a tenth of the time to the
first token.
"""


def conf_folder() -> Path:
    """Where the configs are: in the package of a wheel, in `examples/conf` of a source checkout."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parent / "examples" / "conf"


def train(arguments: Sequence[str], beside: Path | None = None) -> int:
    """Rejection sampling, by `train_rs.yaml`.

    Args:
        arguments: of the command line.
        beside: what `--config-path` is relative to; by default the working folder.
    """
    return run("train", arguments, beside=beside)


def sft(arguments: Sequence[str], beside: Path | None = None) -> int:
    """Supervised training, by `train_sft.yaml`; as `train`."""
    return run("sft", arguments, beside=beside)


def reward_model(arguments: Sequence[str], beside: Path | None = None) -> int:
    """A reward model from pairs, by `train_reward_model.yaml`; as `train`."""
    return run("reward-model", arguments, beside=beside)


def serve(arguments: Sequence[str], beside: Path | None = None) -> int:
    """A judge as a service, by `serve_reward.yaml`; as `train`."""
    return run("serve", arguments, beside=beside)


def serve_rollouts(arguments: Sequence[str], beside: Path | None = None) -> int:
    """A vLLM server of rollouts, by `serve_rollouts.yaml`; as `train`."""
    return run("serve-rollouts", arguments, beside=beside)


def generate(arguments: Sequence[str], beside: Path | None = None) -> int:
    """A file of answers, by `generate.yaml`; as `train`."""
    return run("generate", arguments, beside=beside)


def plan(arguments: Sequence[str]) -> int:
    """Print what another command would do."""
    return _ahead("plan", arguments)


def check(arguments: Sequence[str]) -> int:
    """See whether another command could do its work."""
    return _ahead("check", arguments)


def run(
    command: str,
    arguments: Sequence[str],
    *,
    ahead: str | None = None,
    beside: Path | None = None,
) -> int:
    """Compose the config of a command, and do what is to be done with it.

    Args:
        command: a key of `help.OF`.
        arguments: Hydra's options and overrides.
        ahead: `plan` or `check`, instead of the command itself.
        beside: what `--config-path` is relative to.

    Returns:
        An exit status.

    Raises:
        SystemExit: where the command ends the process itself.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        from rs_aligner.cli.arguments import config_names

        conf = conf_folder()
        print(helps.of_config(command, list(config_names(conf)), str(conf)), end="")
        return FINISHED

    gc.set_threshold(*COLLECTED_AFTER)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rs_aligner.cli import compose, scripts
    from rs_aligner.config import ConfigError

    script, config = scripts.SCRIPTS[command], helps.OF[command].config
    then: Callable[[Any], None] = script.run if ahead is None else scripts.AHEAD[ahead](script.schema)
    try:
        given, folders = _checked(arguments, script.schema, config, beside)
        tree = compose.compose_once(given, config, folders)
        if tree is None:
            _by_hydra(arguments, given, folders, config, then)
        else:
            then(tree)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return TO_BE_MENDED
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return TO_BE_MENDED
    return FINISHED


def _checked(
    arguments: Sequence[str], schema: Any, config: str, beside: Path | None
) -> tuple[Arguments, list[Path]]:
    """The arguments, and the folders in which Hydra is to look for configs, in its order.

    A folder that replaces ours is looked in first, and ours at last, so that its configs may name ours. There
    are none where the arguments name a place that is no folder, such as a package.

    Raises:
        ConfigError: Hydra would not understand them.
    """
    from rs_aligner.cli.arguments import check_config, read

    given, ours = read(arguments, schema), conf_folder()
    added = [Path(given.options["--config-dir"])] if "--config-dir" in given.options else []
    folders = [ours, *added]
    if "--config-path" in given.options:
        replaced = given.options["--config-path"]
        if "://" in replaced:
            return given, []
        folders = [(beside or Path.cwd()) / replaced, *added, ours]
    check_config(given, given.options.get("--config-name", config), folders)
    return given, folders


def _by_hydra(
    arguments: Sequence[str],
    given: Arguments,
    folders: Sequence[Path],
    config: str,
    then: Callable[[Any], None],
) -> None:
    """Have `hydra.main` compose the config, and do whatever else is asked of it."""
    import hydra

    from rs_aligner.config import open_overrides

    found = list(arguments)
    if "--config-path" in given.options and folders:
        found += ["--config-path", str(folders[0])]
        if not any(one.lstrip("+").startswith("hydra.searchpath") for one in given.overrides):
            found.append(f"hydra.searchpath=[file://{folders[-1]}]")
    sys.argv[1:] = open_overrides(found)  # Hydra reads no other
    # Hydra raises what it has to say, instead of printing it at length, and cuts no stack trace short.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    where: dict[str, Any] = {"config_path": str(conf_folder()), "config_name": config}
    hydra.main(version_base=None, **where)(then)()


def _ahead(name: str, arguments: Sequence[str]) -> int:
    """`plan` and `check`, which stand before another command."""
    import difflib

    if not arguments or arguments[0] in ("-h", "--help"):
        print(helps.of_ahead(name), end="")
        return FINISHED if arguments else TO_BE_MENDED
    command, *rest = arguments
    known = helps.behind(name)
    if command not in known:
        near = difflib.get_close_matches(command, known, 1, 0.4)
        meant = f"; did you mean {near[0]}?" if near else f": {', '.join(known)}"
        print(f"error: rs-aligner {name} needs a command, and {command!r} is none{meant}", file=sys.stderr)
        return TO_BE_MENDED
    return run(command, rest, ahead=name)
