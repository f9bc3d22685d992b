"""The verifiers against what people write, and against what only looks right."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rs_aligner.answers import is_right
from rs_aligner.reward.judges.base import Metadata
from rs_aligner.reward.judges.verifiers import FinalAnswer, exact_answer

pytestmark = pytest.mark.timeout(60)


def final_answer(
    prompts: list[str], responses: list[str], metadata: list[Metadata], **kwargs: Any
) -> list[Any]:
    judge = FinalAnswer(**kwargs)
    scores = list(judge.score_texts(prompts, responses, metadata))
    judge.close()
    return scores


@pytest.mark.parametrize(
    ("response", "reference", "reward"),
    [
        ("42", "42", 1.0),
        ("43", "42", 0.0),
        ("", "42", 0.0),
        ("  42\n", "42", 1.0),
        ("so it is 42", "42", 0.0),
        ("6 * 7 = 42\n#### 42", "There are 6.\n#### 42", 1.0),
        ("#### 41\n#### 42", "42", 1.0),
        ("#### 42\n#### 41", "42", 0.0),
        ("1,234.50", "1234.5", 1.0),
        ("-7.0", "-7", 1.0),
        ("042", "42", 1.0),
        ("42", 42, 1.0),
        ("12345678901234567891", "12345678901234567890", 0.0),
        ("nan", "nan?", 0.0),
        ("inf", "1e999", 0.0),
        ("4_2", "42", 0.0),
        ("New   York", "New York", 1.0),
        ("new york", "New York", 0.0),
    ],
)
def test_exact_answer_compares_final_answers(response: str, reference: object, reward: float) -> None:
    assert exact_answer([""], [response], [{"answer": reference}]) == [reward]


def test_exact_answer_finds_the_answers_of_gsm8k_right(test_data: Path) -> None:
    rows = [json.loads(line) for line in (test_data / "gsm8k" / "test.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    assert exact_answer(answers, answers, rows) == [1.0] * len(rows)
    wrong = [answer + "1" for answer in answers]
    assert exact_answer(wrong, wrong, rows) == [0.0] * len(rows)


RIGHT = [
    ("18", "18"),
    ("$18", "18"),
    ("18.00", "18"),
    ("The answer is 18.", "18"),
    ("1,234", "1234"),
    ("1 234", "1234"),
    ("1{,}234", "1234"),
    (r"\boxed{1{,}234}", "1234"),
    (r"\boxed{\$18}", "18"),
    ("#### 18 eggs", "18"),
    ("#### $18.00 per day", "18"),
    ("so -18", "-18"),
    ("\u221218", "-18"),
    (r"\boxed{-\frac{1}{2}}", "-0.5"),
    (r"$\frac{1}{2}$", "1/2"),
    ("3 1/2", "3.5"),
    ("3½", "3.5"),
    (r"3\frac{1}{2}", "3.5"),
    ("50%", "0.5"),
    ("50%", "50"),
    ("50 percent", "50%"),
    ("0.5", "50%"),
    ("€18", "18"),
    ("18€", "18"),
    ("18 m^2", "18"),
    ("18 m²", "18"),
    ("18 cm3", "18"),
    ("1.8 x 10^1", "18"),
    (r"1.8 \times 10^{3}", "1800"),
    ("70k", "70000"),
    ("$1.5M", "1500000"),
    ("1.5 million", "1500000"),
    ("18 dollars and 50 cents", "18.5"),
    ("$18 and 50 cents", "18.50"),
    ("**18**", "18"),
    ("It is `18`", "18"),
    ("minus 18", "-18"),
    ("-$18", "-18"),
    ("$-18", "-18"),
    ("(\u221218)", "-18"),
    ("16 - 3 - 4 = 9", "9"),
    ("x=-18", "-18"),
    ("18th", "18"),
    ("USD 18", "18"),
    ("Rs. 18", "18"),
    ("<<9*2=18>>18", "18"),
    (r"- \boxed{18}", "-18"),
    (r"\boxed{18\text{ eggs}}", "18"),
    (r"\boxed{18~\mathrm{cm}^2}", "18"),
    (r"18^\circ", "18"),
    ("New York", "new york."),
    (r"\boxed{\text{New York}}", "New York"),
    ("1.234.567", "1234567"),
    ("1.234,50", "1234.5"),
    ("18,50 €", "18.5"),
    ("70\\,000", "70000"),
    ("12,34,567", "1234567"),
    ("1e3", "1000"),
    ("Eggs:\n- 18 eggs", "18"),
    ("#### - 18", "-18"),
    ("=- 18", "-18"),
    ("#### Final\n18", "18"),
    ("5 boxes.\n\nThe answer is 18.\n", "18"),
    ("1,234.5 kg", "1234.5"),
    ("5*3=15", "15"),
    ("#### 5 x 3 = 15", "15"),
    ("$18$", "18"),
    ("\\(18\\)", "18"),
    ("18!", "18"),
    ("1_234", "1234"),
    ("$$\\boxed{1234}$$", "1234"),
    ("\\\\boxed{1234}", "1234"),
    ("<answer>1,234</answer>", "1234"),
    ("Final Answer: The final answer is $1234$. I hope it is correct.", "1234"),
    ("1234 m/s^2", "1234"),
    ("1234 (one thousand two hundred thirty-four)", "1234"),
    ("\\boxed{\\$1{,}234.00}.", "1234"),
    ("2468/2", "1234"),
    ("$\\mathbf{1234}$", "1234"),
    ("She is 18-year-old", "18"),
    ("#### 18 = the total", "18"),
    ("-20/2", "-10"),
    ("$\\frac{-20}{2}$", "-10"),
    ("18 : it is", "18"),
    ("COVID-19", "19"),
    ("6/4", "1.5"),
    ("1/3", "2/6"),
    ("\\sqrt{2}", "\\sqrt{2}"),
    ("18,", "18"),
    ("(18)", "18"),
    ("[18]", "18"),
    ("18;", "18"),
    ("Answer: 18 (eighteen)", "18"),
    ("$1,234.00.", "1234"),
    ("-0", "0"),
    ("2 dozen", "2"),
    ("5kg", "5"),
    ("18\u00a0000", "18000"),
    ("18'000", "18000"),
    ("\uff04\uff11\uff18", "18"),
    ("about 18 miles/hour", "18"),
    ("18 km/h", "18"),
    ("$2.50 each, total $18", "18"),
    ("3/4 of a cup", "0.75"),
    ("The total is: $$\\frac{36}{2}$$", "18"),
    ("\\dfrac{36}{2}", "18"),
]
WRONG = [
    ("18 x", "18"),
    ("3-1/2", "3.5"),
    ("3-1/2", "2.5"),
    ("between 17 and 18", "18"),
    ("it is between $17 and $18.", "17"),
    ("12_34", "1234"),
    ("19", "18"),
    ("17", "18"),
    ("81", "18"),
    ("-18", "18"),
    ("1.8", "18"),
    ("180", "18"),
    ("1", "18"),
    ("8", "18"),
    ("18.5", "18"),
    ("1,8", "18"),
    ("118", "18"),
    ("18k", "18"),
    ("18 thousand", "18"),
    ("0.18", "18"),
    ("1/18", "18"),
    ("18/2", "18"),
    ("18%", "0.0018"),
    ("0.18%", "18"),
    ("16 - 3", "3"),
    ("17 or 18", "18"),
    ("18 or 19", "18"),
    ("3:18", "18"),
    ("18:30", "18"),
    ("2 hours 18 minutes", "18"),
    ("18^2", "18"),
    ("2^18", "18"),
    ("\\sqrt{18}", "18"),
    ("18\\pi", "18"),
    ("m18", "18"),
    ("x^18", "18"),
    ("7,0000", "70000"),
    ("1,2345", "12345"),
    ("18-20", "18"),
    ("18-20", "20"),
    ("3 18/20", "18"),
    ("±18", "18"),
    ("#### 17, 18", "18"),
    ("#### 17 18", "17"),
    ("\\boxed{17 and 18}", "17"),
    ("1.8.2", "18"),
    ("12/18/2020", "18"),
    ("-\\boxed{18}", "18"),
    ("#### -18", "18"),
    ("\\sqrt{2}", "\\sqrt{3}"),
    ("not here", ""),
    ("", "18"),
    ("####", "18"),
    ("New York", "York"),
    ("18", "-18"),
    ("5000%", "50"),
    ("18e2", "18"),
    ("1.8e1", "1.8"),
    ("50%", "5"),
    ("1 800", "18"),
    ("1,800", "18"),
    ("minus 18", "18"),
    ("negative 18", "18"),
    ("- 18", "18"),
    ("\\frac{x}{18}", "18"),
    ("18 hundred", "18"),
    ("18 dollars and 50 cents", "50"),
    ("18 dollars and 50 cents", "18"),
    ("20 minus 18", "18"),
    ("1800", "18"),
    ("181", "18"),
]


@pytest.mark.parametrize(("response", "reference"), RIGHT)
def test_what_people_take_for_the_answer_is_right(response: str, reference: str) -> None:
    assert is_right(response, reference)


@pytest.mark.parametrize(("response", "reference"), WRONG)
def test_what_people_do_not_take_for_the_answer_is_wrong(response: str, reference: str) -> None:
    assert not is_right(response, reference)


def test_an_exact_match_wants_the_very_text() -> None:
    def exact(response: str, reference: str) -> float:
        return final_answer([""], [response], [{"answer": reference}], match="exact")[0]

    assert exact("so\n####  18 ", "x #### 18") == 1.0
    assert exact(r"\boxed{18}", "18") == 1.0
    assert exact("#### 18.0", "18") == 0.0
    assert exact("it is 18", "18") == 0.0


def groups(number: int, separator: str) -> str:
    return f"{number:,}".replace(",", separator)


def latex(number: int) -> str:
    return groups(number, "{,}")


# Forms in which people write the answer n; what stands before them has other numbers in it.
FORMS: dict[str, Callable[[int], str]] = {
    "plain": lambda n: f"{n}",
    "marked": lambda n: f"#### {n}",
    "marked with a unit": lambda n: f"2 + 2 = 4\n#### {n:,} apples",
    "marked in money": lambda n: f"#### ${n:,}.00",
    "marked and going on": lambda n: f"#### {n}\n\nQuestion: How many are 3 and 4?",
    "boxed": lambda n: rf"\boxed{{{n}}}",
    "boxed in a sentence": lambda n: rf"Thus the answer is $\boxed{{{n}}}$, since 2 of 7 are left.",
    "boxed with separators": lambda n: rf"\[ \boxed{{{latex(n)}}} \]",
    "boxed with a unit": lambda n: rf"\boxed{{{n}\ \text{{dollars}}}}",
    "boxed with a unit squared": lambda n: rf"\boxed{{{n}~\mathrm{{cm}}^2}}",
    "boxed as a fraction": lambda n: rf"\boxed{{\frac{{{3 * n}}}{{3}}}}",
    "boxed with an equation": lambda n: rf"\boxed{{x = {n}}}",
    "sentence": lambda n: f"Of the 12 there are 5 left. The answer is {n}.",
    "sentence with separators": lambda n: f"In 3 days he sells {n:,} of them.",
    "sentence with a unit": lambda n: f"After 2 hours they have gone {n} miles.",
    "sentence with a unit squared": lambda n: f"The 3 fields have {n} m^2",
    "bold": lambda n: f"So, with 4 of them, it is **{n:,}**.",
    "bold with a unit": lambda n: f"Total: **{n} eggs**",
    "money": lambda n: f"She pays 3 times ${n // 3}, in all ${n:,}." if n >= 0 else f"She has -${-n:,}.",
    "money after": lambda n: f"It costs {n:,} dollars",
    "money in euros": lambda n: f"Der Preis: {n} \u20ac",
    "decimal": lambda n: f"{n}.0",
    "two decimals and separators": lambda n: f"2 x 3 = 6, so {n:,}.00",
    "equation": lambda n: f"{n - 7} + 7 = {n}",
    "equation in LaTeX": lambda n: rf"\( {n - 7} + 7 = {latex(n)} \)",
    "fraction": lambda n: f"It is {2 * n}/2",
    "improper fraction in LaTeX": lambda n: rf"$\dfrac{{{4 * n}}}{{4}}$",
    "power of ten": lambda n: rf"${n} \times 10^{{0}}$",
    "spaces": lambda n: f"The sum of all 4 is {groups(n, ' ')}",
    "thin spaces": lambda n: "In all " + groups(n, r"\,") + " of them",
    "typographic minus": lambda n: f"x = {n}".replace("-", "\u2212"),
    "calculator": lambda n: f"3 * 5 = <<3*5=15>>15, and <<{n}={n}>>{n}",
    "leading text": lambda n: f"Answer: {n}",
    "approximately": lambda n: f"#### \u2248 {n}",
    "brackets": lambda n: f"(4) The answer is ({n}).",
}


def problems(test_data: Path) -> list[dict[str, str]]:
    lines = (test_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 600
    return rows


def value(row: dict[str, str]) -> int:
    return int(row["answer"].rpartition("####")[2].replace(",", ""))


def test_the_reference_answers_of_gsm8k_are_all_right(test_data: Path) -> None:
    rows = problems(test_data)
    answers = [row["answer"] for row in rows]
    # A list of rows whose values are all texts is another type to mypy.
    assert final_answer(answers, answers, rows) == [1.0] * 600  # type: ignore[arg-type]  # any mapping
    last_numbers = [answer.replace("####", "") for answer in answers]
    # A list of rows whose values are all texts is another type to mypy.
    assert final_answer(answers, last_numbers, rows) == [1.0] * 600  # type: ignore[arg-type]  # any mapping


def test_thirty_forms_of_each_answer_of_gsm8k_are_all_right(test_data: Path) -> None:
    assert len(FORMS) >= 30
    rejected = [
        (name, form(value(row)), row["answer"][-20:])
        for row in problems(test_data)
        for name, form in FORMS.items()
        if not is_right(form(value(row)), row["answer"])
    ]
    assert rejected == []


def near_misses(number: int) -> Iterator[str]:
    """Numbers that are not `number` but look like it, as digits."""
    text = str(abs(number))
    sign = "-" if number < 0 else ""
    yield from (str(number + step) for step in (-100, -10, -2, -1, 1, 2, 10, 100))
    yield str(-number)  # sign
    yield str(number * 10)  # decimals shifted
    yield str(number * 1000)
    yield sign + (text[:-1] or "0") + "." + text[-1]
    yield f"{sign}0.{text}"
    yield f"{number}.5"
    yield f"{number}.01"
    yield sign + "1" + text  # a digit more
    yield sign + text + text[-1]
    yield sign + text[:-1]  # a digit less
    yield sign + text[1:]
    for i in range(len(text)):  # a digit changed
        yield sign + text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :]
    for i in range(len(text) - 1):  # two digits swapped
        yield sign + text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    yield f"{number}/2"
    yield f"1/{number}"
    yield f"{number} 1/2"
    yield f"{number} + 1"
    yield f"{number} or {number + 1}"
    yield f"{number} thousand"
    yield f"{number}^2"
    yield rf"\sqrt{{{number}}}"
    yield rf"{number}\pi"
    yield f"{number}:30"
    yield f"{number}e2"
    yield f"{number},0000"  # groups that are none


def as_fraction(text: str) -> Fraction | None:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


WRAPS = ("{}", "#### {}", r"\boxed{{{}}}", "The answer is {}", "Total: **{}**", "3 + 4 = 7, so ${}$")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_no_near_miss_of_an_answer_of_gsm8k_is_accepted(test_data: Path) -> None:
    tried, accepted = 0, []
    for row in problems(test_data):
        number = value(row)
        for miss in near_misses(number):
            if not miss.strip("-") or as_fraction(miss) == number:
                continue  # swapping equal digits, or nothing left
            for wrap in WRAPS:
                tried += 1
                if is_right(wrap.format(miss), row["answer"]):
                    accepted.append((wrap.format(miss), number))
    assert accepted == []
    assert tried > 100_000


def test_answers_of_other_problems_are_wrong(test_data: Path) -> None:
    rows = problems(test_data)
    shuffled = rows[:]
    random.Random(0).shuffle(shuffled)
    pairs = [(a, b) for a, b in zip(rows, shuffled, strict=True) if value(a) != value(b)]
    assert len(pairs) > 500
    assert not any(is_right(form(value(b)), a["answer"]) for a, b in pairs for form in FORMS.values())


@settings(max_examples=200)
@given(st.text(max_size=200) | st.text("0123456789,.-+/%$ \\{}^\nxorfacboxed#", max_size=60))
def test_any_text_is_judged_without_an_error(text: str) -> None:
    final_answer(["", ""], [text, "18"], [{"answer": "18"}, {"answer": text}])


@pytest.mark.parametrize(
    "text",
    [
        "1 " * 50_000,
        " " * 100_000 + "1",
        "$" * 50_000,
        "\\boxed{" * 20_000,
        "- " * 50_000,
        "1" * 100_000,
        "\\frac{1}{" * 10_000,
    ],
)
@pytest.mark.timeout(10)
def test_no_text_takes_long(text: str) -> None:
    assert final_answer([""], [text], [{"answer": "18"}]) == [0.0]
