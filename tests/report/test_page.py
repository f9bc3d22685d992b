"""The page of a run: what is on it, what is not, and that what a model writes stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rs_aligner.commands.report import main
from rs_aligner.report.page import PAGE, anchor, glossary, write_report
from scripts import meanings
from tests.fake_run import FakeRun
from tests.report.made_up import add_look, add_step, group, write_run

NASTY = "<script>alert(1)</script> </script> {{ 7*7 }} {% raw %} \"'><img src=x onerror=alert(2)> \x00 \ud800"


class Elements(HTMLParser):
    """What is on a page: elements with their attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", [""]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open.append(tag)
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag and self._open:
            pass

    def handle_data(self, data: str) -> None:
        if self._open[-1] not in ("script", "style"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def read(folder: Path) -> Elements:
    return Elements(write_report(folder).read_text(encoding="utf-8"))


def titles(page: Elements) -> list[str]:
    ids = [attributes.get("id") or "" for attributes in page.named("h3")]
    return [name.removesuffix("-title") for name in ids if name.endswith("-title")]


def rows(number: int = 4) -> list[dict[str, float]]:
    first: dict[str, float] = {"step": 0, "validation/reward": 0.25, "validation/reward_error": 0.03}
    steps = [
        {
            "step": step,
            "reward/mean": 0.5,
            "reward/kept_mean": 1.0,
            "control/random_mean": 0.5,
            "control/random_std": 0.25,
            "control/z": 2.0,
            "rollouts/total": 4,
            "rollouts/kept": 2,
            "rollouts/truncated": 3,
            "rollouts/failed": 0,
            "best_of/1": 0.5,
            "best_of/2": 0.75,
        }
        for step in range(1, number + 1)
    ]
    steps[-1] |= {"validation/reward": 0.75, "validation/reward_error": 0.04}
    return [first, *steps]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    run = FakeRun(tmp_path_factory.mktemp("runs") / "mine")
    run.start(steps=4, interval=2, watched=lambda prompt, rollout: by_length(rollout))
    return run


def by_length(rollout: Any) -> Any:
    from rs_aligner.rollout import Score

    return Score(float(len(rollout.text)) + rollout.index)


def test_a_trained_run_has_all_of_the_page(whole: FakeRun) -> None:
    page = read(whole.folder)
    assert {section["id"] for section in page.named("section")} >= {
        *("verdict", "worries", "curves", "distributions", "prompts", "run", "glossary"),
    }
    assert {
        "scores",
        "best-of-k",
        "drift",
        "entropy",
        "distinct",
        "length",
        "rate",
        "time",
        "reasons",
    } <= set(titles(page))
    assert {"score-shares", "length-shares", "pass-rates", "scatter", "watched", "agreement"} <= set(
        titles(page)
    )


def test_every_picture_has_a_name_and_a_table(whole: FakeRun) -> None:
    page = read(whole.folder)
    pictures = [one for one in page.named("svg") if one.get("role") == "img"]
    assert len(pictures) > 15
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    for one in pictures:
        assert set((one["aria-labelledby"] or "").split()) <= ids
    assert len(page.named("details")) >= len(pictures)
    assert len(page.named("figure")) == len(pictures)
    all_ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(all_ids) == len(set(all_ids))


def test_links_lead_to_places_of_the_page_and_nothing_is_asked_elsewhere(whole: FakeRun) -> None:
    page = read(whole.folder)
    ids = {attributes["id"] for _, attributes in page.found if "id" in attributes}
    for link in page.named("a"):
        assert (link["href"] or "").startswith("#")
        assert (link["href"] or "")[1:] in ids
    for _, attributes in page.found:
        assert not attributes.keys() & {"src", "srcset", "action", "poster", "background"}
    assert [link["href"] for link in page.named("link")] == ["data:,"]
    text = (whole.folder / PAGE).read_text(encoding="utf-8")
    assert not re.findall(r"url\(|@import|https?://", text)


def test_the_verdict_and_what_to_worry_about_are_in_words(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows())
    add_step(folder, 1, [group(0, [0.0, 1.0]), group(1, [0.0, 1.0])], [[1], [1]])
    page = read(folder)
    assert "Yes: the held-out score rose by 0.5." in page.words
    assert "was 0.250 ± 0.030 before the first step and is 0.750 ± 0.040 after step 4;" in page.words
    assert "Over 4 steps the kept answers score 0.5 higher than as many answers" in page.words
    assert "75% of the answers of the last 3 steps" in page.words
    assert "It finished, with 4 steps." in page.words
    assert {"class": "verdict good"} in page.named("div")


def test_a_figure_that_a_run_does_not_have_leaves_no_picture(tmp_path: Path) -> None:
    page = read(write_run(tmp_path / "run", rows()))
    assert set(titles(page)) == {"scores", "best-of-k", "reasons"}


def test_what_models_and_data_say_stays_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / NASTY[:24].replace("/", ""), rows(), state="failed", reason=NASTY)
    nasty = [
        group(0, [(0.0, 2.0), (1.0, 1.0)], name=NASTY, text=NASTY),
        group(1, [NASTY, 1.0], name="p1", text=NASTY),
    ]
    add_step(folder, 1, nasty, [[1], [1]])
    page = read(folder)
    assert "alert" not in str(page.named("script"))
    assert not page.named("img")
    assert not [attributes for _, attributes in page.found if any(key.startswith("on") for key in attributes)]
    assert page.text.count("<script>alert(1)</script> </script> {{ 7*7 }}") >= 4  # reason, id, two answers
    assert "49" not in re.sub(r"\d+\.\d+|2\d{3}", "", page.text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"state": "training"}, "It goes on: training in step 4 of 4."),
        (
            {"state": "stopped", "reason": "SIGTERM"},
            "It was stopped in step 4 of 4 and can be gone on with: SIGTERM.",
        ),
        ({"state": "failed", "reason": "no room"}, "It failed in step 4 of 4: no room."),
        ({"state": None}, "Nothing says what the run is doing: it has no status.json."),
    ],
)
def test_how_it_ended_is_told(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    assert said in read(write_run(tmp_path / "run", rows(), **given)).words


def test_a_run_that_has_not_finished_a_step_has_a_page(tmp_path: Path) -> None:
    page = read(write_run(tmp_path / "run", state="sampling"))
    assert "Nobody can tell: no held-out answers were scored." in page.words
    assert titles(page) == []


@pytest.mark.parametrize(("number", "hard", "easy"), [(1, "0", ""), (4, "01", "32"), (5, "012", "43")])
def test_of_few_prompts_none_is_hard_and_easy(tmp_path: Path, number: int, hard: str, easy: str) -> None:
    folder = write_run(tmp_path / "run", rows())
    add_step(folder, 1, [group(place, [place / 10, 0.9]) for place in range(number)], [[1]] * number)
    prompts = read(folder).text.partition("The hardest")[2].partition("How it")[0]
    hardest, _, easiest = prompts.partition("The easiest")
    easiest = easiest.partition("Rollouts")[0]
    assert "".join(re.findall(r"prompt (\d)", hardest.partition("Rollouts")[0])) == hard
    assert "".join(re.findall(r"prompt (\d)", easiest)) == easy


def test_one_step_without_validation(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"step": 1, "reward/mean": 0.5, "loss": 1.0, "rollouts/total": 2}])
    add_step(folder, 1, [group(0, [0.5])], [[0]])
    page = read(folder)
    assert {"scores", "loss"} <= set(titles(page))
    assert "no held-out answers were scored" in page.words


@pytest.mark.parametrize(
    ("command", "row", "pictures"),
    [
        ("train_sft", {"validation/reward": 0.5, "time/step": 1.0}, {"scores", "loss", "rate", "time"}),
        (
            "train_reward_model",
            {"accuracy": 0.5, "validation/accuracy": 0.6, "validation/loss": 0.7},
            {"accuracy", "held-out-loss", "loss", "rate"},
        ),
    ],
)
def test_other_trainings_have_a_smaller_page(
    tmp_path: Path, command: str, row: dict[str, float], pictures: set[str]
) -> None:
    figures = [{"step": step, "loss": 1.0, "lr": 0.1, **row} for step in (1, 2)]
    page = read(write_run(tmp_path / "run", figures, command=command))
    assert set(titles(page)) == pictures
    assert "figures and the run's settings only" in page.words
    assert {section["id"] for section in page.named("section")} == {"verdict", "curves", "run", "glossary"}
    assert not (tmp_path / "run" / "report").exists()


def test_settings_other_than_the_defaults_are_shown(tmp_path: Path) -> None:
    config = {
        "exp_manager": {"explicit_log_dir": "runs/x"},
        "pretrained_checkpoint": {"restore_from_path": "policy"},
        "model": {
            "data": {"data_prefix": {"train": "prompts.jsonl"}},
            "rs": {"num_rollout_samples": 24, "until": {"accepted": 2, "at_least": 0.5}},
        },
    }
    page = read(write_run(tmp_path / "run", rows(), config=config))
    assert "model.rs.num_rollout_samples 24 512" in page.words
    assert "model.rs.until.accepted 2 no such section" in page.words
    assert "model.rs.top_n_rollouts" not in page.words
    assert "It was started once." in page.words
    assert "the judge j1" in page.words


def test_what_cannot_be_read_is_told_on_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows())
    (folder / "config").mkdir()
    (folder / "config" / "attempt_01.yaml").write_text("number: 1")
    add_step(folder, 1, [group(0, [0.0, 1.0])], [[1]])
    path = folder / "rollouts" / "step_000001.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    page = read(folder)
    assert page.text.count("Not all of this run could be read.") == 2
    assert str(path) in page.words


def test_a_long_run_has_a_page_that_is_no_longer(tmp_path: Path) -> None:
    long, short = (
        read(write_run(tmp_path / name, rows(number))) for name, number in (("a", 2000), ("b", 20))
    )
    assert len(long.found) <= len(short.found) + 20
    assert "12 of 2000 rows; all are in metrics.jsonl." in long.words
    assert (tmp_path / "a" / PAGE).stat().st_size < 200_000


def test_the_page_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", rows())
    before = write_report(folder).read_bytes()
    write_run(folder, rows(5))

    def lost() -> None:
        raise RuntimeError("another run has the folder")

    with pytest.raises(RuntimeError, match="another run"):
        write_report(folder, lost)
    assert (folder / PAGE).read_bytes() == before


def test_looks_at_held_out_prompts_make_the_verdict_sharper(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rows())
    for step, shift in ((0, 0.0), (4, 0.5)):
        add_look(folder, step, [group(n, [0.2 * n + shift], name=f"v{n}", step=step + 1) for n in range(4)])
    assert "(from the differences of each prompt)" in read(folder).words


def test_the_glossary_says_what_docs_metrics_md_says() -> None:
    written = meanings.TARGET.read_text(encoding="utf-8")
    assert written == meanings.meanings(), "run python scripts/meanings.py"
    found = {one.key: one for one in glossary()}
    assert found["best_of/<k>"].text.startswith("expected highest of k rollouts")
    assert "](" not in written
    assert len({one.anchor for one in found.values()}) == len(found) > 60
    assert anchor("best_of/<k>") == found["best_of/<k>"].anchor


def test_the_command_writes_each_page_and_tells_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", rows())
    assert main([str(tmp_path / "none"), str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == f"{folder / PAGE}\n"
    assert err.startswith(f"error: {tmp_path / 'none'} does not exist")
    assert main([str(folder)]) == 0
