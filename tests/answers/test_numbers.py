"""A number counts only where nothing is left over; where an answer stands; what it may cost."""

from __future__ import annotations

import random

import pytest

from rs_aligner.answers import alone, extract, final_answer, is_right, marked_answer, plain
from rs_aligner.answers.numbers import find_numbers
from tests.answers.pairs import pairs

pytestmark = pytest.mark.timeout(60)

PART_OF_SOMETHING = [
    ("x > 7", "7"),
    ("So x < 7.", "7"),
    (r"so $x \ge 7$", "7"),
    (r"$x \neq 18$", "18"),
    ("x != 18", "18"),
    ("not 18", "18"),
    ("x = 3 or x = 4", "4"),
    ("The answer is 3 or maybe 4.", "4"),
    ("it is 3, 4", "4"),
    ("17 (or 18)", "18"),
    ("either 17 or 18", "18"),
    ("5, 6, 7, 8", "8"),
    ("The answer is 7x.", "7"),
    ("so $7x$.", "7"),
    ("so 7 x", "7"),
    ("2^n", "2"),
    ("so n - 6", "-6"),
    ("x + 6", "6"),
    ("6 + x", "6"),
    ("6 - x", "6"),
    ("8i", "8"),
    ("f(18)", "18"),
    ("|18|", "18"),
    ("18_9", "18"),
    ("18 mod 5", "18"),
    ("x/18", "18"),
    ("3 \u00d7 18", "18"),
    ("\u03c018", "18"),
    ("18 \u00b1 2", "18"),
    ("18 square root of 2", "18"),
    ("We need the square root of 18 exactly.", "18"),
    ("It is the cube root of 18 for short.", "18"),
    (r"so \sqrt{5}\cdot 6", "6"),
    (r"so $6\sqrt{5}$", "6"),
    (r"$\log 9$", "9"),
    ("log 9", "9"),
    ("(3, 18)", "18"),
    ("[3, 18)", "18"),
    ("{3, 18}", "18"),
    (r"\boxed{7x}", "7"),
    (r"\boxed{7 m}", "7"),
    (r"\boxed{4k}", "4000"),
    (r"\boxed{x \ge 7}", "7"),
    (r"\boxed{(7, 8)}", "7"),
    (r"\boxed{x^2=9}", "9"),
    (r"\boxed{2x=9}", "9"),
    (r"\boxed{18!}", "18"),
    (r"\boxed{18 = 18 \text{ or more}}", "18"),
    (r"\boxed{(18)^2}", "18"),
    (r"\boxed{18 ^2}", "18"),
    (r"\boxed{\pm 18}", "18"),
    (r"\boxed{18 \text{ or } 19}", "18"),
    (r"\boxed{\text{not } 18}", "18"),
    (r"\boxed{3}\sqrt{2}", "3"),
    (r"\boxed{3}^2", "3"),
    (r"2\boxed{3}", "3"),
]
STILL_ALONE = [
    ("-> 18", "18"),
    ("=> 18", "18"),
    ("> 18", "18"),
    ("</think> 18", "18"),
    ("x = 18 apples", "18"),
    ("So $x = 18$ apples remain", "18"),
    (r"So \(x = 18\).", "18"),
    (r"\boxed{AB = 18}", "18"),
    (r"\boxed{f(3) = 18}", "18"),
    (r"\boxed{\text{Area} = 18}", "18"),
    (r"\boxed{\angle A = 18^\circ}", "18"),
    (r"\boxed{5 + 13 = 18}", "18"),
    (r"\boxed{18 \text{ m}}", "18"),
    (r"\boxed{18}\%", "18%"),
    ("In 2015, 18 people came.", "18"),
    ("Of 5, 18 are left.", "18"),
    ("The answer is 18!", "18"),
    ("\u0661\u0668", "18"),
    ("#### 18 m", "18"),
    ("18", "x = 18"),
]


@pytest.mark.parametrize(("response", "reference"), PART_OF_SOMETHING)
def test_a_number_that_is_part_of_something_is_no_answer(response: str, reference: str) -> None:
    assert not is_right(response, reference)


@pytest.mark.parametrize(
    ("response", "reference"), [pair for pair in PART_OF_SOMETHING if "|" not in pair[0]]
)
def test_a_reference_is_not_reduced_to_a_number_in_it(response: str, reference: str) -> None:
    assert not is_right(rf"\boxed{{{reference}}}", response)


@pytest.mark.parametrize(("response", "reference"), STILL_ALONE)
def test_a_number_with_a_unit_a_currency_or_a_name_is_an_answer(response: str, reference: str) -> None:
    assert is_right(response, reference)


@pytest.mark.parametrize(
    ("response", "reference"),
    [
        ("18 cm", "18 m^2"),
        (r"\boxed{18\text{ km}}", r"18\text{ m}"),
        ("$18", "18%"),
        ("18 hours", "18 minutes"),
    ],
)
def test_units_that_are_known_to_differ_make_the_difference(response: str, reference: str) -> None:
    assert not is_right(response, reference)
    assert is_right(response, "18")


def test_no_wrong_pair_of_the_collection_is_accepted() -> None:
    assert [pair for pair in pairs("answers_wrong") if is_right(*pair)] == []


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### Step 1: Count\n5 + 4 = 9\n\n#### Step 2: Double\nThe answer is 18.", None),
        ("#### Conclusion\nTwice 9 boxes make 18 boxes.", None),
        ("#### 2. Double\nso 18", None),
        ("### Plan\n#### 2 Boxes\nTwice 9 make 18.", None),
        ("##### 18", None),
        ("# ### 18", None),
        ("so\n#### 18", " 18"),
        ("so #### 18 eggs\n\nQuestion: how many?", " 18 eggs"),
        ("#### Paris.", " Paris."),
        ("#### 17\n#### 18\n", " 18"),
        ("####\n18", None),
        ("#### 17\n##### 18 more", " 17"),
    ],
)
def test_the_mark_is_gsm8ks_and_no_heading(text: str, answer: str | None) -> None:
    assert extract.after_mark(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So we get \\boxed{18}.\n\n#### Check\n18 / 2 = 9", "18"),
        ("\\boxed{18}\n#### 9", "18"),
        (r"\boxed{\frac{1}{2}} and later \boxed{x^{2}}", "x^{2}"),
        (r"$\boxed{2}$, $\boxed{3}$", "2, 3"),
        (r"$x = \boxed{2}$ and $x = \boxed{3}$", "2, 3"),
        (r"\boxed{2} or \boxed{3}", r"2 \text{ or } 3"),
        (r"\boxed{2}. So it is \boxed{3}", "3"),
        (r"\boxed{2} or 3", ""),
        (r"\boxed{12", ""),
        (r"\boxed{}", ""),
        (r"\boxed 7", "7"),
        (r"-\boxed{7}", "-7"),
        (r"5-\boxed{7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    ],
)
def test_what_a_box_holds(text: str, answer: str) -> None:
    said = marked_answer(text)
    assert said is not None
    assert (said.text, said.where) == (answer, "box")


def test_an_empty_answer_is_never_right() -> None:
    for empty in ("", r"\boxed{}", "####", " \n"):
        for reference in ("", " ", r"\boxed{}", "18", "Paris"):
            assert not is_right(empty, reference)


def test_plain_numbers_and_words_without_numbers_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the slow way was taken")

    for name in ("plain_text", "find_numbers"):
        monkeypatch.setattr(alone, name, never)
    solution = "He sells 16 - 3 - 4 = 9 eggs.\n" * 20
    for answer in ("#### 1,234", r"so \boxed{1234}", "The answer is 1234.", "So it is $1,234.00."):
        assert is_right(solution + answer, "#### 1,234")
    assert is_right("1234", "#### 1,234")
    words = "and so they went home to see whether there was any of it left\n" * 200
    assert not is_right(words, "1234")
    assert final_answer(words) == words.partition("\n")[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x B-12", 12),
        ("COVID-19", 19),
        ("7-12", None),
        ("(-12", -12),
        (") -12", -12),
        ("- 12", -12),
        ("\u221212", 12),
    ],
)
def test_a_hyphen_behind_a_letter_is_no_sign(text: str, value: int | None) -> None:
    assert find_numbers(text, in_prose=False)[-1].value == value


def test_how_long_what_is_read_may_be() -> None:
    assert alone.whole_number("18 " + "a" * 297, formula=False) is not None
    assert alone.whole_number("18 " + "a" * 298, formula=False) is None
    assert alone.last_number("so " + "1" * 100) is not None
    assert alone.last_number("so " + "1" * 101) is None
    assert [find_numbers("1" * n, in_prose=False)[0].value for n in (100, 101)] == [int("1" * 100), None]
    phrase, formula = extract.ending("answer: " + "x" * 392), extract.last_formula(f"${'x' * 398}$")
    assert phrase is not None
    assert formula is not None
    assert (len(phrase.text), len(formula.text)) == (392, 398)
    assert extract.ending("answer: " + "x" * 393) is None
    assert extract.last_formula(f"${'x' * 399}$") is None


def test_a_number_may_be_wrapped_again_and_again() -> None:
    text = "18"
    for command in ("text", "textbf", "mathrm", "mbox", "mathbf"):
        text = rf"\{command}{{{text}}}"
        assert is_right(rf"\boxed{{{text}}}", "18"), text


def test_a_currencys_code_is_its_sign() -> None:
    for code in ("USD 1.5M", "US$1.5M", "Rs. 1.5m", "EUR 1.5 million", "CHF 1,500,000"):
        found = alone.last_number(f"It costs {code}")
        assert found is not None
        assert found.number.value == 1_500_000
    assert alone.last_number("It is 1.5M") is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text", ["18 " + "a" * 280 + "@", "a" * 280 + "@18", "a " * 140 + "@ 18", "18" + " a-" * 90 + "@"]
)
def test_words_beside_a_number_do_not_take_long(text: str) -> None:
    assert not is_right(rf"\boxed{{{text}}}", "18")


def test_the_quick_way_says_what_the_slow_way_says(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "the and or not minus has between root of total is about 5 1/2 x = 18 20 $18 % thousand dollars"
    words += " cents apples to from maybe per day , . - + negative sqrt percent -3"
    rng = random.Random(0)
    texts = [" ".join(rng.choices([*words.split(), "\n"], k=rng.randint(2, 9))) for _ in range(1500)]
    around = ["is", "has", "a", "of", "about", "minus", "to", "not", "from", "root", "maybe", "negative"]
    behind = ["", "apples", "thousand", "percent", "cents", "apples or", "red apples", "per day", "apples."]
    numbers = ["18", "$18", "-3", "1,234.5", "1/2"]
    texts += [f"he {word} {number} {unit}" for word in around for number in numbers for unit in behind]
    texts += [f"5 so it {text[3:]}" for text in texts[1500:]]
    quick = [alone.last_number(text) for text in texts]
    monkeypatch.setattr(alone, "_among_words", lambda window: None)
    monkeypatch.setattr(alone, "_simple", lambda text, in_prose: None)
    slow = [alone.last_number(text) for text in texts]
    said = [[found and (found.number.value, found.unit) for found in side] for side in (quick, slow)]
    assert [case for case in zip(texts, *said, strict=True) if case[1] != case[2]] == []


def test_only_the_end_of_a_long_text_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prepared(text: str) -> str:
        seen.append(len(text))
        return plain.plain_text(text)

    monkeypatch.setattr(alone, "plain_text", prepared)
    assert is_right("They take 3 of 12.\n" * 1000 + "Thus 18 miles/hour (as the crow flies).", "18")
    assert len(seen) == 1
    assert seen[0] < 300
