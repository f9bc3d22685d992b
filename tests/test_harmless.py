"""Texts of models do nothing where they are shown."""

from __future__ import annotations

import pytest

from rs_aligner.harmless import code_span, markdown_cell, one_line, without_places


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ünïcode, 日本 and 🙂", "plain, ünïcode, 日本 and 🙂"),
        ("two\nlines\ttab", "two⏎lines␉tab"),
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("\x9b2J\x7f\r", "\\u009b2J␡␍"),
        ("\u202eright to left\u2066", "\\u202eright to left\\u2066"),
        ("\u200bnothing\ufeff\u2028line", "\\u200bnothing\\ufeff\\u2028line"),
        ("half \ud800 of a pair", "half \\ud800 of a pair"),
        ("\U000e0041tag", "\\U000e0041tag"),
    ],
)
def test_no_control_reaches_a_terminal_and_nothing_is_left_out(text: str, shown: str) -> None:
    assert one_line(text, 100) == shown


def test_a_long_text_is_cut() -> None:
    assert one_line("a" * 30, 20) == "a" * 16 + " ..."
    assert one_line("a" * 20, 20) == "a" * 20


def test_markdown_and_html_are_text_in_a_cell() -> None:
    text = "a | b <img src=x onerror=y> [link](http://x) `code` ![p](q) &lt; # *b*"
    cell = markdown_cell(text)
    assert "|" not in cell.replace("\\|", "")
    assert "<" not in cell
    assert "](" not in cell
    assert "&amp;lt;" in cell.replace("\\", "")


def test_code_in_markdown_stays_code() -> None:
    assert code_span("a `b` | c\n<x>") == "`a 'b' \\| c⏎<x>`"
    assert code_span("") == "` `"


def test_a_command_line_tells_no_folders_and_no_secrets() -> None:
    line = "/venv/bin/rs-aligner train model.x=[/home/jane/secret/train.jsonl,more/held_out.jsonl] "
    line += "judge.url=http://host:80/v1/x remote_rm.judge.kwargs.api_key=sk-1 +a.token='sk-2' top_p=0.5"
    assert without_places(line) == (
        ".../rs-aligner train model.x=[.../train.jsonl,more/held_out.jsonl] judge.url=http://host:80/v1/x "
        "remote_rm.judge.kwargs.api_key=(not told) +a.token='sk-2' top_p=0.5"
    ).replace("'sk-2'", "'(not told)'")
