"""Several runs on one page: where their settings differ, their curves, held-out scores, the same prompts.

The first run is what the others are compared with. Left out on purpose: which of them is best, which is a
question of price; and runs of other programs.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rs_aligner import __version__
from rs_aligner.files import make_folder, write_whole
from rs_aligner.report.about import about
from rs_aligner.report.curves import Line, curve
from rs_aligner.report.page import templates
from rs_aligner.report.pairing import Gain, Key, Look, gain, look_of, side_by_side
from rs_aligner.report.pictures import Curve, Frame, Picture, lines
from rs_aligner.report.run_data import RunData, open_run

_MOST_PROMPTS = 16
_LONGEST = 200  # characters of a setting
_OF_THE_RUN = ("exp_manager.explicit_log_dir",)  # differs in any case
_JUDGES = ("the judge", "the held-out data", "the judge of held-out answers")
_FIGURES = (
    ("Held-out score", Line("", "validation/reward", "validation/reward_error")),
    ("Held-out score, watched judge", Line("", "validation/watched", "validation/watched_error")),
    ("Mean score", Line("", "reward/mean")),
    ("Mean score of the kept", Line("", "reward/kept_mean")),
    ("Kept, less by chance", Line("", "reward/kept_minus_mean")),
    ("KL to the start", Line("", "kl/to_start")),
    ("Entropy", Line("", "entropy")),
    ("Response length", Line("", "response_length/mean")),
    ("Distinct 2-grams", Line("", "distinct/2")),
    ("Loss", Line("", "loss")),
    ("Accuracy", Line("", "accuracy")),
    ("Held-out accuracy", Line("", "validation/accuracy")),
)
_COLOURS = 6  # of page.css; with more runs they come again
_BY_COST = 3  # of these figures are shown over tokens and seconds, too


@dataclass(frozen=True)
class Compared:
    """One of the runs.

    Attributes:
        name: what it is called here.
        start, last: its first and its last look at held-out prompts; None where it has none.
        gain: of its last look over the first run's; None for that one itself, or without looks.
    """

    run: RunData
    name: str
    rows: list[dict[str, float]]
    settings: Mapping[str, Any]
    found: Mapping[str, str]
    ended: str
    start: Look | None
    last: Look | None
    gain: Gain | None = None

    @property
    def ranks(self) -> int:
        """How many processes it was, each with a device."""
        settings = self.settings
        return int(settings.get("trainer.num_nodes", 1)) * int(settings.get("trainer.devices", 1))

    @property
    def tokens(self) -> float:
        """Response tokens sampled."""
        return sum(row.get("tokens/generated", 0.0) for row in self.rows)

    @property
    def device_seconds(self) -> float:
        """Seconds of its steps, times its ranks."""
        return self.ranks * sum(row.get("time/step", 0.0) for row in self.rows)

    @property
    def steps(self) -> int:
        """The last step."""
        return int(self.rows[-1]["step"]) if self.rows else 0


@dataclass(frozen=True)
class Different:
    """A setting, fingerprint or figure that is not the same in all runs; a value for each."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All that the page shows.

    Attributes:
        runs: in the order in which they were named.
        warnings: what makes figures hard to compare.
        settings, found: where they differ.
        pictures: over steps, and the first figures over tokens and seconds.
        prompts: held-out prompts that all runs answered.
        written: when.
    """

    runs: list[Compared]
    warnings: list[str]
    settings: list[Different]
    found: list[Different]
    pictures: list[Picture]
    prompts: list[Key]
    written: str
    version: str = __version__


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read the runs; some may still be going on.

    Args:
        folders: two or more.

    Raises:
        ValueError: one is no run, or damaged; or there are fewer than two different ones.
    """
    runs = [open_run(folder) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < 2:
        raise ValueError("compare needs two different runs at least, such as: compare runs/a runs/b")
    found = [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    first = found[0]
    if first.last is not None:
        found[1:] = [
            replace(one, gain=gain(one.last, first.last)) if one.last is not None else one
            for one in found[1:]
        ]
    looks = {one.name: one.last for one in found if one.last is not None}
    return Comparison(
        found,
        list(_warnings(found)),
        list(_differences([one.settings for one in found])),
        list(_differences([one.found for one in found])),
        list(_pictures(found)),
        side_by_side(looks, _MOST_PROMPTS) if len(looks) == len(found) else [],
        time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page, whole; it holds all that it shows."""
    content = templates().get_template("compare.html").stream(page=comparison)
    make_folder(path.resolve().parent)
    write_whole(path, (piece.encode("utf-8", "backslashreplace") for piece in content))
    return path


def _read(run: RunData, name: str) -> Compared:
    known, looks = about(run), run.held_out_steps()
    latest = known.latest
    return Compared(
        run,
        name,
        run.metrics(),
        {} if latest is None else latest.settings,
        {} if latest is None else latest.found,
        known.ended,
        look_of(run, looks[0]) if looks else None,
        look_of(run, looks[-1]) if looks else None,
    )


def _names(runs: Sequence[RunData]) -> list[str]:
    """The folders' names; where two are alike, with what tells them apart."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return names
    paths = [str(run.folder.resolve()) for run in runs]
    above = os.path.commonpath(paths)
    return [os.path.relpath(path, above) for path in paths]


def _warnings(runs: Sequence[Compared]) -> Iterator[str]:
    if len({one.run.kind for one in runs}) > 1:
        kinds = ", ".join(f"{one.name} is one of {one.run.kind}" for one in runs)
        yield f"The runs are of different kinds: {kinds}."
    for part in _JUDGES:
        if len({one.found.get(part) for one in runs}) > 1:
            yield (
                f"Scores may not be comparable: {part} is not the same in all runs (the fingerprints are "
                "below)."
            )
    without = [one.name for one in runs if one.last is None]
    if without and len(without) < len(runs):
        yield f"No held-out scores of {', '.join(without)}."
    for one in runs:
        if one.gain is not None and not one.gain.is_paired:
            yield f"{one.name} was held out other prompts than {runs[0].name}, so theirs are not paired."
    for one in runs:
        if not one.rows:
            yield f"{one.name} has no step behind it."


def _differences(values: Sequence[Mapping[str, Any]]) -> Iterator[Different]:
    for key in sorted(set().union(*values)):
        if key in _OF_THE_RUN:
            continue
        shown = tuple(_shown(one[key]) if key in one else "" for one in values)
        if len(set(shown)) > 1:
            yield Different(key, shown)


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _pictures(runs: Sequence[Compared]) -> Iterator[Picture]:
    for number, (title, line) in enumerate(_FIGURES):
        axes = [("step", [one.rows for one in runs])]
        if number < _BY_COST:
            axes.append(("response tokens sampled", [_over(one, "tokens/generated", 1) for one in runs]))
            axes.append(("device seconds", [_over(one, "time/step", one.ranks) for one in runs]))
        for label, rows in axes:
            curves = [_named(curve(some, line), one.name) for one, some in zip(runs, rows, strict=True)]
            name = f"{line.key.replace('/', '-')}-{label.split()[0]}"
            picture = lines(Frame(name, title, line.key, label, keys=(line.key,)), curves)
            if picture is not None:
                shapes = (replace(one, colour=(one.colour - 1) % _COLOURS + 1) for one in picture.shapes)
                yield replace(picture, shapes=tuple(shapes))


def _named(one: Curve, name: str) -> Curve:
    return replace(one, name=name)


def _over(one: Compared, key: str, factor: float) -> list[dict[str, float]]:
    """The rows with what was spent until then in place of the step."""
    spent, found = 0.0, []
    for row in one.rows:
        spent += factor * row.get(key, 0.0)
        found.append({**row, "step": spent})
    return found
