r"""Prompt templates mean what they look like on a command line, and our own advice works when it is copied.

Commands are parsed by a shell's rules (`shlex`) and then by Hydra, as when somebody types them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rs_aligner.config import ConfigError, TrainRSConfig, load_config, open_overrides
from rs_aligner.config.template import PromptTemplate, example
from rs_aligner.data import load_prompts
from tests.config.conftest import compose
from tests.conftest import ROOT
from tests.data.test_prompts import Letters

pytestmark = pytest.mark.timeout(60)
KEY = "model.data.prompt_template"
ROW = {"question": "1+1?", "answer": "2", "n": 7}


def typed(command: str) -> str:
    """What reaches the config of an override that is typed in a shell, quotes and all."""
    (override,) = shlex.split(command)
    return str(compose("train_rs", open_overrides([override])).model.data.prompt_template)


def filled(template: str) -> str:
    return PromptTemplate(template).fill(ROW)


@pytest.mark.parametrize(
    ("command", "prompt"),
    [
        (rf'"{example("question")}"', "Question: 1+1?\nAnswer:"),
        (rf"""'{KEY}="Question: {{question}}\nAnswer:"'""", "Question: 1+1?\nAnswer:"),
        (rf'''"{KEY}='{{n}}\t{{question}}'"''', "7\t1+1?"),
        (rf'''"{KEY}='{{question}} Put it in \boxed{{}}.\n'"''', "1+1? Put it in \\boxed{}.\n"),
        (rf'''"{KEY}='{{question}}\nPut it in \boxed{{{{}}}}.'"''', "1+1?\nPut it in \\boxed{}."),
    ],
)
def test_what_is_typed_in_a_shell_becomes_what_it_looks_like(command, prompt):
    assert filled(typed(command)) == prompt


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("Q: {question}\nA:", "Q: 1+1?\nA:"),  # a line break of YAML or Python stays one
        (r"Q: {question}\nA:", "Q: 1+1?\nA:"),
        (r"{question}\\n", r"1+1?\n"),
        (r"{question}\\\n", "1+1?\\\n"),
        (
            r"{question} \text{{x}} \neq \nu \times \theta\nA:",
            "1+1? \\text{x} \\neq \\nu \\times \\theta\nA:",
        ),
        (
            r"\alpha \boxed{} \frac{1}{2} \sqrt{x^{2}} {question}",
            r"\alpha \boxed{} \frac{1}{2} \sqrt{x^{2}} 1+1?",
        ),
        ('{question} Reply with {"answer": 4}.', '1+1? Reply with {"answer": 4}.'),
        ("{question} {{q}} {{}}", "1+1? {q} {}"),
        (r"{question} \boxed{{answer}}", r"1+1? \boxed{answer}"),
        (r"{question} \boxed{{{answer}}}", r"1+1? \boxed{2}"),
        ("{n:03d} {question!r:>8}", "007   '1+1?'"),
    ],
)
def test_what_a_template_says(template, prompt):
    assert filled(template) == prompt


def test_an_answer_in_latex_braces_is_not_put_into_the_prompt_by_mistake():
    with pytest.raises(ValueError, match="LaTeX or the row's 'answer'") as error:
        PromptTemplate(r"{question} Put the answer in \boxed{answer}.")
    said = str(error.value)
    first, second = re.findall(r"\\boxed\{\{+answer\}\}+", said)
    assert filled("{question} " + first) == r"1+1? \boxed{answer}"
    assert filled("{question} " + second) == r"1+1? \boxed{2}"


@pytest.mark.parametrize("template", ["{}", "{0}: {question}", "{question} {a.b}", "{question} {a[0]}"])
def test_a_field_that_is_no_key_is_refused_with_the_braces_that_would_work(template):
    with pytest.raises(ValueError, match="should name whole keys of the row") as error:
        PromptTemplate(template)
    doubled = str(error.value).rpartition(": ")[2]
    assert filled("{question} " + doubled) == "1+1? " + doubled[1:-1]


def test_a_config_with_such_a_template_is_refused_with_the_key(tree):
    with pytest.raises(ConfigError, match=rf"{KEY} is .*: has .*LaTeX or the row's 'answer'"):
        load_config(tree(**{KEY: r"{question} \boxed{answer}"}), TrainRSConfig)


def test_the_advice_for_rows_without_a_text_works_as_it_is_given(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1+1?"}\n')
    with pytest.raises(ValueError, match=r"or model\.data\.prompt_template") as error:
        load_prompts([str(file)], Letters(), max_prompt_length=99)
    advice = re.search(r'model\.data\.prompt_template, for example (".*")$', str(error.value))
    assert advice is not None
    template = typed(advice[1])
    (prompt,) = load_prompts([str(file)], Letters(), max_prompt_length=99, template=template).prompts
    assert prompt.text == "Question: 1+1?\nAnswer:"


def test_the_advice_for_a_key_that_the_row_has_not_works_as_it_is_given(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "1+1?"}\n')
    with pytest.raises(ValueError, match=r"for the text \{red, blue\} itself double the braces"):
        load_prompts([str(file)], Letters(), max_prompt_length=99, template="{question} {red, blue}")
    how = "{question} {{red, blue}}"
    (prompt,) = load_prompts([str(file)], Letters(), max_prompt_length=99, template=how).prompts
    assert prompt.text == "1+1? {red, blue}"


ADVICE = re.compile(
    r"(?<![\w.{])((?:model|trainer|exp_manager|remote_rm|watched_rm|judge)(?:\.\w+)+="
    r"(?:\[[^\]\n]*\]|'[^'\n]*'|[^\s,;)`\"'\[\]]+))"
)


def advised() -> list[str]:
    """Each `key=value` that a message of the package or a page of the docs tells a user to set."""
    pages = [*(ROOT / "rs_aligner").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    found = {match for path in pages for match in ADVICE.findall(path.read_text())}
    # Those with braces are filled in when they are said.
    return sorted(text.rstrip(".:\\") for text in found if not re.search(r"[{}%]|\.\.\.", text))


@pytest.mark.parametrize("override", advised())
def test_an_override_that_we_advise_is_one_for_hydra(override: str) -> None:
    parsed: Any = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == override.partition("=")[0]


def test_the_docs_and_the_code_have_such_advice():
    assert "model.data.judge_special_tokens=true" in advised()
    assert len(advised()) > 10
    assert Path(ROOT / "docs" / "chat.md").is_file()
