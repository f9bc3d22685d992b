"""The commands that read a config: Hydra composes it from `conf/` and the overrides, `scripts` does the rest.

`python examples/train_rs.py` and `rs-aligner train` are the same call of this. Left out on purpose: what the
config means (`config`), and what is done with it (`scripts`, `commands`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rs_aligner.cli import help as helps
from rs_aligner.exit_status import FINISHED, TO_BE_MENDED

PACKAGE = Path(__file__).resolve().parents[1]


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

    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from rs_aligner.cli import scripts
    from rs_aligner.config import open_overrides

    script = scripts.SCRIPTS[command]
    then: Callable[[Any], None] = script.run if ahead is None else scripts.AHEAD[ahead](script.schema)
    try:
        checked = _checked(arguments, script.schema, helps.OF[command].config, beside)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return TO_BE_MENDED
    sys.argv[1:] = open_overrides(checked)  # Hydra reads no other
    # Hydra raises what it has to say, instead of printing it at length, and cuts no stack trace short.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    where: dict[str, Any] = {"config_path": str(conf_folder()), "config_name": helps.OF[command].config}
    try:
        hydra.main(version_base=None, **where)(then)()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return TO_BE_MENDED
    return FINISHED


def _checked(arguments: Sequence[str], schema: Any, config: str, beside: Path | None) -> list[str]:
    """The arguments as Hydra is to get them.

    A folder that replaces ours is looked in first, and ours behind it, so that its configs may name ours.

    Raises:
        ConfigError: Hydra would not understand them.
    """
    from rs_aligner.cli.arguments import check_config, read

    given = read(arguments, schema)
    ours, options, found = conf_folder(), given.options, list(arguments)
    folders = [ours]
    if "--config-path" in options:
        replaced = options["--config-path"]
        if "://" in replaced:
            return found
        first = (beside or Path.cwd()) / replaced
        folders = [first, ours]
        found += ["--config-path", str(first)]
        if not any(one.lstrip("+").startswith("hydra.searchpath") for one in given.overrides):
            found.append(f"hydra.searchpath=[file://{ours}]")
    if "--config-dir" in options:
        folders.append(Path(options["--config-dir"]))
    check_config(given, options.get("--config-name", config), folders)
    return found


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
