"""The viewer of rollouts in Chromium: what it shows is what the ledger has, whatever a model wrote.

One file, so that one process has browser and runs. What is expected is worked out from the ledger here.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from rs_aligner.record.ledger import Ledger
from rs_aligner.record.ledger_row import LedgerRow
from rs_aligner.report.page import write_report
from rs_aligner.report.token_texts import read_token_texts
from tests.browser.chromium import Opener
from tests.browser.conftest import LARGE

CARD = re.compile(r"answer (\d+) to prompt (.+): (kept|rejected|no score|held out)")
MOST_ELEMENTS = 5000
Shown = list[tuple[str, int]]


@cache
def rows_of(run: Path, name: str) -> list[LedgerRow]:
    return Ledger(run / "rollouts").read_named(name)


SETTLED = """() => {
  const asked = new URLSearchParams(location.hash.split("?")[1]);
  const told = (control) => (control.type === "checkbox" ? (control.checked ? "1" : "") : control.value);
  const controls = [...document.querySelectorAll("#rv-controls [name]")];
  return document.getElementById("rv-groups").dataset.shown === location.hash
    && controls.every((control) => told(control) === (asked.get(control.name) ?? ""));
}"""


def settle(page: Page) -> None:
    """Wait until what the controls say is in the address and shown; the page lets no function be polled."""
    while not page.evaluate(SETTLED):  # the test's own timeout ends this
        page.wait_for_timeout(20)


def cards(page: Page) -> Shown:
    """The answers on the page that is shown, by prompt and index, in order."""
    settle(page)
    labels = page.locator("#rv-groups article").evaluate_all("all => all.map(one => one.ariaLabel)")
    found = [CARD.fullmatch(label) for label in labels]
    return [(one[2], int(one[1])) for one in found if one]


def shown(page: Page) -> Shown:
    """All that is shown, over all pages, none of which has too many elements; then the first again."""
    found = cards(page)
    turn, back = page.locator("#rv-page-after"), page.locator("#rv-page-before")
    turns = 0
    while turn.is_visible() and turn.is_enabled():
        turn.click()
        assert elements(page) <= MOST_ELEMENTS
        found += cards(page)
        turns += 1
    for _ in range(turns):
        back.click()
    return found


def elements(page: Page) -> int:
    return int(page.evaluate("document.querySelectorAll('*').length"))


def ready(page: Page, told: str) -> None:
    """Wait until the viewer says how many answers there are."""
    expect(page.locator("#rv-count")).to_contain_text(told)


def in_data_order(rows: list[LedgerRow]) -> Shown:
    return [(row.prompt_id, row.index) for row in rows]


def look_at(opened: Opener, path: Path, address: str = "#rollouts?", **more: Any) -> Page:
    page, _ = opened(path, address, **more)
    ready(page, "answers of")
    return page


# Opening


def test_a_small_run_is_one_file_that_asks_for_nothing_and_shows_its_rollouts(
    small: Path, opened: Opener
) -> None:
    page, seen = opened(small, "#rollouts?")
    ready(page, "24 answers of 24, 4 prompts")
    assert cards(page) == in_data_order(rows_of(small.parent / "run", "step_000001"))
    assert seen.requests == [small.as_uri()]
    assert seen.complaints == []


@pytest.mark.slow
def test_a_large_run_is_read_step_by_step_from_files_beside_the_page(large: Path, opened: Opener) -> None:
    path = large / "report.html"
    assert path.stat().st_size <= 5_000_000
    page, seen = opened(path)
    page.locator("#rv").scroll_into_view_if_needed()
    ready(page, "768 answers of 768, 32 prompts")
    assert elements(page) <= MOST_ELEMENTS
    page.locator("#rv-controls").get_by_label("Step after").click()
    expect(page.locator("#rv-step")).to_have_value("rollouts_000002")
    ready(page, "768 answers of 768")
    names = [url.partition("#")[0].rpartition("/")[2] for url in seen.requests]
    assert names[0] == "report.html"
    assert set(names[1:]) == {path.name for path in (large / "report").glob("rollouts_00000[12]*.js")}
    assert all(url.startswith("file:") for url in seen.requests)
    assert seen.complaints == []
    page.locator("#rv-controls").get_by_label("Of", exact=True).select_option("held-out prompts")
    ready(page, "64 answers of 64, 32 prompts")
    assert shown(page) == in_data_order(rows_of(large, "held_out_000000"))


CUT = """() => [...document.querySelectorAll(".checks, .settings")].filter(
  (one) => one.parentElement.scrollWidth > one.parentElement.clientWidth).map((one) => one.className)"""
INK = """() => [...document.querySelectorAll(".state")].map((one) => getComputedStyle(one).backgroundColor)"""


def test_no_table_is_cut_off_on_a_narrow_screen(small: Path, opened: Opener) -> None:
    page, _ = opened(small, width=400)
    expect(page.locator(".checks")).to_be_visible()
    assert page.evaluate(CUT) == []


def test_a_printed_page_needs_no_backgrounds_and_leaves_out_a_viewer_that_shows_nothing(
    small: Path, opened: Opener
) -> None:
    page, _ = opened(small, scheme="dark")
    page.emulate_media(media="print")
    assert set(page.evaluate(INK)) == {"rgba(0, 0, 0, 0)"}
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"
    expect(page.locator("#rollouts")).to_be_hidden()
    page.emulate_media(media="screen")
    page.locator("#rollouts").scroll_into_view_if_needed()
    ready(page, "24 answers of 24")
    page.emulate_media(media="print")
    expect(page.locator("#rollouts")).to_be_visible()


# Filters, search and sorting


def status(name: str) -> Callable[[LedgerRow], bool]:
    return {
        "kept": lambda row: row.kept,
        "rejected": lambda row: not row.kept and row.reward is not None,
        "failed": lambda row: row.reward is None,
    }[name]


def within(row: LedgerRow, low: float, high: float) -> bool:
    return row.reward is not None and low <= row.reward <= high


def has(row: LedgerRow, text: str) -> bool:
    return any(text.lower() in one.lower() for one in (row.prompt, row.response, row.prompt_id))


FILTERS: list[tuple[dict[str, str], Callable[[LedgerRow], bool]]] = [
    ({"Fate": "kept"}, status("kept")),
    ({"Fate": "rejected"}, status("rejected")),
    ({"Fate": "failed"}, status("failed")),
    ({"Reason": "below the threshold"}, lambda row: row.reason == "below the threshold"),
    ({"Ended by": "length"}, lambda row: row.finish_reason == "length"),
    ({"Score from": "0.5"}, lambda row: within(row, 0.5, math.inf)),
    ({"Score from": "-0.1", "Score to": "0.2"}, lambda row: within(row, -0.1, 0.2)),
    ({"Search prompts and answers": "</SCRIPT>"}, lambda row: has(row, "</script>")),
    (
        {"Search prompts and answers": "東京 the", "Fate": "kept"},
        lambda row: has(row, "東京 the") and row.kept,
    ),
    ({"Search prompts and answers": "p17"}, lambda row: has(row, "p17")),
    ({"Search prompts and answers": "nothing has this"}, lambda row: False),
]


def set_controls(page: Page, values: dict[str, str]) -> None:
    for label, value in values.items():
        control = page.locator("#rv-controls").get_by_label(label, exact=True)
        if control.evaluate("one => one.tagName") == "SELECT":
            control.select_option(value)
        else:
            control.fill(value)
    settle(page)


@pytest.mark.slow
def test_filters_and_search_show_what_the_ledger_has_of_it(large: Path, opened: Opener) -> None:
    page = look_at(opened, large / "report.html")
    rows = rows_of(large, "step_000001")
    for values, fits in FILTERS:
        set_controls(page, values)
        expected = [row for row in rows if fits(row)]
        ready(page, f"{len(expected):,} answer")
        assert (values, shown(page)) == (values, in_data_order(expected))
        prompts = len({row.group for row in expected})
        ready(page, f"of 768, {prompts} prompt")
        page.get_by_role("button", name="Reset").click()
        ready(page, "768 answers of 768")


def down(value: float | None) -> float:
    return math.inf if value is None else -value


def up(value: float | None) -> float:
    return math.inf if value is None else value


def apart(row: LedgerRow) -> float | None:
    return None if row.reward is None or row.watched is None else abs(row.reward - row.watched)


def likely(row: LedgerRow) -> float:
    """As the page has it: in hundredths of a nat."""
    return sum(round(-100 * value) for value in row.log_probs) / len(row.log_probs)


SORTS: dict[str, Callable[[LedgerRow], float]] = {
    "score-down": lambda row: down(row.reward),
    "score-up": lambda row: up(row.reward),
    "length-down": lambda row: -len(row.token_ids),
    "length-up": lambda row: len(row.token_ids),
    "watched-down": lambda row: down(row.watched),
    "apart-down": lambda row: down(apart(row)),
    "likely-down": likely,
    "likely-up": lambda row: -likely(row),
}


@pytest.mark.slow
def test_answers_are_sorted_within_prompts_or_as_one_list(large: Path, opened: Opener) -> None:
    page = look_at(opened, large / "report.html")
    rows = rows_of(large, "step_000001")
    for name, by in SORTS.items():
        page.locator("#rv-controls").get_by_label("Answers", exact=True).select_option(name)
        expected = sorted(rows, key=lambda row: (row.group, by(row)))
        assert (name, cards(page)) == (name, in_data_order(expected)[: len(cards(page))])
        page.locator("#rv-controls").get_by_label("Arranged").select_option("as one list")
        listed = in_data_order(sorted(rows, key=by))
        assert (name, cards(page)) == (name, listed[: len(cards(page))])
        page.locator("#rv-controls").get_by_label("Arranged").select_option("by prompt")
    page.get_by_role("button", name="Reset").click()
    means = {}
    for group in {row.group for row in rows}:
        scores = [row.reward for row in rows if row.group == group and row.reward is not None]
        means[group] = sum(scores) / len(scores)
    page.locator("#rv-controls").get_by_label("Prompts", exact=True).select_option("hardest first")
    order = in_data_order(sorted(rows, key=lambda row: means[row.group]))
    assert shown(page) == order
    page.locator("#rv-controls").get_by_label("Prompts", exact=True).select_option("easiest first")
    assert cards(page)[0][0] == order[-1][0]


# One prompt over the steps; the address


@pytest.mark.slow
def test_a_prompt_is_shown_over_all_steps_and_the_address_leads_there(large: Path, opened: Opener) -> None:
    page = look_at(opened, large / "report.html", "#rollouts?step=rollouts_000003&status=kept")
    rows = [row for row in rows_of(large, "step_000003") if row.kept]
    assert cards(page)[0] == (rows[0].prompt_id, rows[0].index)
    prompt = rows[0].prompt_id
    page.get_by_role("button", name=f"Prompt {prompt} over all steps").click()
    everywhere = [
        row
        for step in range(1, LARGE.steps + 1)
        for row in rows_of(large, f"step_{step:06d}")
        if row.prompt_id == prompt and row.kept
    ]
    ready(page, f"{len(everywhere)} answers of")
    assert cards(page) == in_data_order(everywhere)
    address = page.url.partition("#")[2]
    again = look_at(opened, large / "report.html", f"#{address}")
    assert cards(again) == in_data_order(everywhere)
    page.go_back()
    expect(page.get_by_role("button", name="Back to the step")).to_be_hidden()
    ready(page, f"{len(rows)} answers of 768")
    page.locator("#rv-controls").get_by_label("Step", exact=True).select_option("rollouts_000004")
    ready(page, f"{sum(row.kept for row in rows_of(large, 'step_000004'))} answers of 768")
    page.go_back()
    expect(page.locator("#rv-controls").get_by_label("Step", exact=True)).to_have_value("rollouts_000003")


# What models write


@pytest.mark.slow
def test_what_models_write_stays_text_however_it_is_shown(large: Path, opened: Opener) -> None:
    page, seen = opened(large / "report.html", "#rollouts?q=<img src=x&view=answers")
    ready(page, "answers of 768")
    title = page.title()
    hostile = next(row for row in rows_of(large, "step_000001") if "<img src=x" in row.response)
    texts = page.locator("#rv-groups article .rv-text").all_inner_texts()
    assert any("<img src=x onerror=\"document.title='harmed'\">" in text for text in texts)
    for address in ("&show=raw", "&colour=1", "&colour=1&show=raw"):
        page.goto(f"{(large / 'report.html').as_uri()}#rollouts?q=<script>{address}")
        settle(page)  # the page stays, and so does what it says until the new address is shown
        ready(page, "answers of 768")
        assert "<script>" in page.locator("#rv-groups").inner_text()
    page.get_by_role("button", name=re.compile("Tokens of answer")).first.click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("Data row")).first.click()
    assert json.loads(page.locator("#rv-dialog pre").inner_text())["id"]
    assert page.evaluate("document.querySelectorAll('#rv-groups :is(script, img, b, iframe)').length") == 0
    assert page.title() == title
    assert seen.complaints == []
    assert hostile.response  # the run has such an answer


# Tokens


@pytest.mark.slow
def test_tokens_are_coloured_by_how_likely_they_were_and_control_tokens_seen(
    large: Path, opened: Opener
) -> None:
    page = look_at(opened, large / "report.html", "#rollouts?colour=1&show=raw")
    expect(page.locator("#rv-legend")).to_contain_text("0.1 to 0.5")
    on_page = set(cards(page))
    rows = [row for row in rows_of(large, "step_000001") if (row.prompt_id, row.index) in on_page]
    texts = read_token_texts(large / "final" / "tokenizer.json")
    wanted: Counter[str] = Counter()
    for row in (row for row in rows if len(row.response) < 900):  # others are cut short at first
        for number, value in zip(row.token_ids, row.log_probs, strict=True):
            surprise = round(-100 * value) / 100
            bucket = sum(surprise >= bound for bound in (0.1, 0.5, 1, 2, 4, 7))
            if number in texts.control:
                wanted["rv-control"] += 1
            elif bucket and isinstance(texts.texts[number], str):
                wanted[f"rv-p{bucket}"] += 1
    counted = page.evaluate(
        """() => {
          const isWhole = ({ startContainer: node }) => {
            const card = node.parentElement.closest("article");
            return card && !card.querySelector("[aria-expanded]");
          };
          const count = ([name, all]) => [name, [...all].filter(isWhole).length];
          return Object.fromEntries([...CSS.highlights].map(count));
        }"""
    )
    assert sum(wanted.values()) > 1000
    assert {name: counted.get(name, 0) for name in wanted} == dict(wanted)
    first = rows[0]
    page.get_by_role(
        "button", name=f"Tokens of answer {first.index} to prompt {first.prompt_id}", exact=True
    ).click()
    table = page.get_by_role("dialog").locator("tbody tr")
    cells = [row.locator("td").all_inner_texts() for row in table.all()[:20]]
    for place, (cell, number, value) in enumerate(zip(cells, first.token_ids, first.log_probs, strict=False)):
        assert cell[:1] + cell[2:3] == [str(place), str(number)]
        assert cell[1] == json.dumps(texts.texts[number], ensure_ascii=False)[1:-1].replace('\\"', '"')
        assert float(cell[3].replace("\u2212", "-")) == pytest.approx(value, abs=0.006)


@pytest.mark.slow
def test_without_a_tokenizer_nothing_is_coloured_and_the_page_says_why(
    small: Path, opened: Opener, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(small.parent / "run", run, ignore=shutil.ignore_patterns("report*", "final"))
    page = look_at(opened, write_report(run), "#rollouts?colour=1")
    expect(page.locator("#rv-legend")).to_contain_text("no tokenizer.json of this run was found")
    assert page.evaluate("[...CSS.highlights.keys()].length") == 0


# What is missing


@pytest.mark.slow
def test_a_page_without_its_files_or_behind_its_run_says_so(
    large: Path, opened: Opener, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.html"
    shutil.copy(large / "report.html", alone)
    page, _ = opened(alone, "#rollouts?")
    expect(page.get_by_role("alert")).to_contain_text("The folder report/ has to lie beside this page")
    (tmp_path / "report").mkdir()
    for path in (large / "report").glob("rollouts_000001*.js"):
        changed = path.read_bytes().replace(b'"key":"', b'"key":"0', 1)
        (tmp_path / "report" / path.name).write_bytes(changed)
    page, _ = opened(alone, "#rollouts?")
    expect(page.get_by_role("alert")).to_contain_text("load the page again")


# Widths, colours, keyboard


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(width: int, large: Path, opened: Opener) -> None:
    for address in ("#rollouts?", "#rollouts?colour=1&show=raw", "#rollouts?prompt=p0&promptOf=steps"):
        page = look_at(opened, large / "report.html", address, width=width)
        inner, outer = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert (address, inner) == (address, min(inner, outer))
        page.get_by_role("button", name=re.compile("Data row")).first.click()
        box = page.get_by_role("dialog").bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_for_everybody_in_light_and_dark(scheme: str, large: Path, opened: Opener) -> None:
    page = look_at(opened, large / "report.html", "#rollouts?colour=1", scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper)[:3])) < 90) == (scheme == "dark")
    found = Axe().run(page)
    page.get_by_role("button", name=re.compile("Tokens of answer")).first.click()
    in_dialog = Axe().run(page)
    for result in (found, in_dialog):
        problems = result.response["violations"]
        told = [(one["id"], one["help"], one["nodes"][0]["html"][:200]) for one in problems]
        assert told == []


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_of_tokens_leave_them_readable() -> None:
    """Axe does not see highlights, so their colours are compared as they are written: at least 4.5 to 1."""
    style = Path(write_report.__code__.co_filename).parent / "assets" / "viewer.css"
    pairs = re.findall(r"background(?:-color)?: (#\w{6}); color: (#\w{6})", style.read_text())
    assert len(pairs) == 2 * (6 + 2 + 6 + 1)
    for pair in pairs:
        low, high = sorted(map(luminance, pair))
        assert (pair, (high + 0.05) / (low + 0.05) >= 4.5) == (pair, True)


@pytest.mark.slow
def test_all_can_be_done_by_keyboard(large: Path, opened: Opener) -> None:
    page = look_at(opened, large / "report.html")
    page.locator("#rv-kind").focus()
    for name in ("rv-step", "rv-after", "rv-q"):  # the step before the first cannot be asked for
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.type("</script>")
    expected = [row for row in rows_of(large, "step_000001") if has(row, "</script>")]
    ready(page, f"{len(expected)} answers of")
    assert page.evaluate("document.activeElement.id") == "rv-q"
    press_until(page, "rv-more")
    assert "over all steps" in page.evaluate("document.activeElement.ariaLabel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Back to the step")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#rv-step")).to_be_focused()
    ready(page, f"{len(expected)} answers of")
    press_until(page, "rv-more", "Data row")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert "Data row" in page.evaluate("document.activeElement.ariaLabel")


def press_until(page: Page, look: str, label: str = "") -> None:
    """Go on with Tab to the next element of a class whose name has a text."""
    for _ in range(60):
        page.keyboard.press("Tab")
        said = page.evaluate("[document.activeElement.className, document.activeElement.ariaLabel || '']")
        if look in said[0] and label in said[1]:
            return
    raise AssertionError(f"Tab does not come to a {look} {label}")
