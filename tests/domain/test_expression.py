import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.domain.expression import RetryDelay

DAY = 86_400_000


@pytest.mark.parametrize(
    ("text", "delays"),
    [
        ("1000", [1000, 1000, 1000]),
        ("15000", [15000, 15000, 15000]),
        ("1000 * (1 + retried)", [1000, 2000, 3000]),
        ("pow(2, retried) * 1000", [1000, 2000, 4000]),
        ("max(1000, pow(2, retried) * 100)", [1000, 1000, 1000, 1000, 1600]),
        ("7000 * retried", [0, 7000, 14000]),
        ("pow(retried, 2) * 1000", [0, 1000, 4000]),
    ],
)
def test_the_documented_examples_evaluate(text: str, delays: list[int]) -> None:
    delay = RetryDelay(text)

    assert [delay.delay_ms(retried) for retried in range(len(delays))] == delays
    assert delay.text == text


@pytest.mark.parametrize(
    ("text", "delay_ms"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("100 / 10 / 5", 2),
        ("2 * -3 + 10", 4),
        ("+5 - -5", 10),
        ("-(2 - 7)", 5),
        ("\t1 \t+1 ", 2),
        ("1.5 * 2", 3),
        (".5 * 4.", 2),
        ("1e3 + 2E+1 + 10e-1", 1021),
        ("7 / 2", 3),
        ("sqrt(49)", 7),
        ("abs(-3)", 3),
        ("exp(0)", 1),
        ("floor(2.9)", 2),
        ("ceil(2.1)", 3),
        ("round(2.5)", 3),
        ("round(3.4)", 3),
        ("10 + round(-2.5)", 7),
        ("10 + floor(-2.5)", 7),
        ("10 + ceil(-2.5)", 8),
        ("min(3, 4)", 3),
        ("max(3, 4)", 4),
        ("pow(2, min(3, max(1, 2)))", 4),
        ("86400000", DAY),
        ("86400001", DAY),
        ("pow(10, 300)", DAY),
    ],
)
def test_arithmetic_has_its_usual_order_and_one_day_is_the_most(text: str, delay_ms: int) -> None:
    assert RetryDelay(text).delay_ms(0) == delay_ms


@pytest.mark.parametrize(
    "text",
    [
        "-1",
        "0 - 1000",
        "1 / 0",
        "-1 / 0",
        "0 / 0",
        "pow(10, 400)",
        "pow(-10, 401)",
        "pow(-10, 400)",
        "pow(0, -1)",
        "pow(-8, 0.5)",
        "pow(pow(9, 999), pow(9, 999))",
        "exp(exp(100))",
        "sqrt(-1)",
        "1e999",
        "1e308 * 10",
        "1e999 - 1e999",
        "floor(1 / 0)",
        "round(0 / 0)",
        "ceil(-1 / 0)",
        "min(1000, 0 / 0)",
        "min(0 / 0, 1000)",
        "max(1000, 0 / 0)",
        "max(1000, 1 / 0)",
    ],
)
def test_a_result_that_is_negative_infinite_or_no_number_means_no_delay(text: str) -> None:
    assert RetryDelay(text).delay_ms(0) == 0


@pytest.mark.parametrize(
    ("text", "delay_ms"),
    [
        ("min(1000, 1 / 0)", 1000),
        ("max(1000, -1 / 0)", 1000),
        ("min(1000, pow(10, 400))", 1000),
        ("max(1000, pow(-10, 401))", 1000),
        ("min(1000, pow(-10, 400))", 1000),
        ("min(1000, exp(1000))", 1000),
        ("min(1000, 1 / (1 / (1 / 0)))", 1000),
        ("max(1000, 1 / (0 * -1))", 1000),
        ("1000 + 1 / exp(1000)", 1000),
    ],
)
def test_infinity_inside_an_expression_is_as_large_as_it_is(text: str, delay_ms: int) -> None:
    assert RetryDelay(text).delay_ms(0) == delay_ms


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", '"" lacks a number, "retried", a function or "(" at character 1'),
        ("   ", '"   " lacks a number, "retried", a function or "(" at character 4'),
        ("1000 *", '"1000 *" lacks a number, "retried", a function or "(" at character 7'),
        ("* 5", '"* 5" lacks a number, "retried", a function or "(" at character 1'),
        ("--5", '"--5" lacks a number, "retried", a function or "(" at character 2'),
        ("()", '"()" lacks a number, "retried", a function or "(" at character 2'),
        ("(1", '"(1" lacks ")" at character 3'),
        ("1)", '"1)" has an unexpected ")" at character 2'),
        ("1 2", '"1 2" has an unexpected "2" at character 3'),
        ("1 retried", '"1 retried" has an unexpected "retried" at character 3'),
        ("2 ** 3", '"2 ** 3" lacks a number, "retried", a function or "(" at character 4'),
        ("2 % 3", '"2 % 3" has an unexpected "%" at character 3'),
        ("1,5", '"1,5" has an unexpected "," at character 2'),
        ("1\n", '"1\\n" has an unexpected "\\n" at character 2'),
        ("٣", '"٣" has an unexpected "٣" at character 1'),
        ("1 + \udcff", '"1 + \\udcff" has an unexpected "\\udcff" at character 5'),
        (".", '"." has an unexpected "." at character 1'),
        ("attempts * 2", '"attempts * 2" has an unknown name "attempts" at character 1'),
        ("Retried", '"Retried" has an unknown name "Retried" at character 1'),
        ("2e", '"2e" has an unexpected "e" at character 2'),
        ("log(2)", '"log(2)" has an unknown name "log" at character 1'),
        ("__import__('os')", '"__import__(\'os\')" has an unknown name "__import__" at character 1'),
        ("sqrt", '"sqrt" lacks "(" at character 5'),
        ("sqrt 4", '"sqrt 4" lacks "(" at character 6'),
        ("sqrt(1, 2)", '"sqrt(1, 2)" lacks ")" at character 7'),
        ("pow(1)", '"pow(1)" lacks "," at character 6'),
        ("pow(1, 2, 3)", '"pow(1, 2, 3)" lacks ")" at character 9'),
        ("pow 1", '"pow 1" lacks "(" at character 5'),
        ("retried(1)", '"retried(1)" has an unexpected "(" at character 8'),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared
        RetryDelay(text)

    assert str(caught.value) == problem


def test_length_and_depth_are_bounded() -> None:
    assert RetryDelay("(" * 31 + "7" + ")" * 31).delay_ms(0) == 7
    with pytest.raises(ValueError, match="is nested more than 32 levels deep at character 33"):
        RetryDelay("(" * 32 + "7" + ")" * 32)

    assert RetryDelay("+".join(["((1))"] * 40)).delay_ms(0) == 40

    assert RetryDelay("1" + "+1" * 255 + " ").delay_ms(0) == 256
    with pytest.raises(ValueError, match="is longer than 512 characters"):
        RetryDelay("1" + "+1" * 255 + "  ")


def test_two_expressions_are_equal_when_their_texts_are() -> None:
    assert RetryDelay("1000") == RetryDelay("1000")
    assert len({RetryDelay("1000"), RetryDelay("1000"), RetryDelay("1e3")}) == 2
    assert RetryDelay("1000") != "1000"
    assert repr(RetryDelay("retried")) == "RetryDelay('retried')"


NUMBERS = st.one_of(st.integers(0, 10**6).map(str), st.sampled_from(["0", "0.5", "1e308", "9e99", "retried"]))


def wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    unary = st.sampled_from(["sqrt", "abs", "exp", "floor", "ceil", "round", "", "-", "+"])
    binary = st.sampled_from(["pow", "min", "max"])
    return st.one_of(
        st.builds("{}({})".format, unary, inner),
        st.builds("{}({}, {})".format, binary, inner, inner),
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
    )


@given(
    st.recursive(NUMBERS, wider, max_leaves=12).filter(lambda text: len(text) <= 512), st.integers(0, 1000)
)
def test_whatever_the_grammar_allows_yields_a_delay_of_at_most_a_day(text: str, retried: int) -> None:
    delay_ms = RetryDelay(text).delay_ms(retried)

    assert 0 <= delay_ms <= DAY


@given(st.text(alphabet="0123456789.eE+-*/(), \tretidpowmnax", max_size=40))
@example("pow(" * 100)
@example("9" * 512)
def test_any_text_is_either_refused_in_a_sentence_or_yields_a_delay(text: str) -> None:
    delay: RetryDelay | None = None
    problem = ""
    try:
        delay = RetryDelay(text)
    except ValueError as error:
        problem = str(error)

    assert " at character " in problem if delay is None else 0 <= delay.delay_ms(0) <= DAY


@given(
    st.floats(min_value=0, max_value=1e6, allow_subnormal=False),
    st.floats(min_value=0.001, max_value=1e6),
)
def test_numbers_mean_what_floating_point_says(x: float, y: float) -> None:
    assert RetryDelay(f"{x!r} * {y!r} / ({x!r} + {y!r})").delay_ms(0) == math.floor(min(x * y / (x + y), DAY))
