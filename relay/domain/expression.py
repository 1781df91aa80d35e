"""The retry-delay expression: arithmetic over `retried` that yields milliseconds.

    expr    := term (("+"|"-") term)*
    term    := unary (("*"|"/") unary)*
    unary   := ("-"|"+")? primary
    primary := number | "retried" | name "(" expr ("," expr)* ")" | "(" expr ")"

Functions: pow(x,y) min(x,y) max(x,y) sqrt(x) abs(x) exp(x) floor(x) ceil(x) round(x). All numbers are
floating point as IEEE 754 has it: dividing by zero, overflow and impossible roots give infinity or "not a
number" and never stop an evaluation. The text is compiled once to a postfix program, so that evaluating
needs neither recursion nor anything of the interpreter's own `eval`.
"""

import math
import operator
import re
from collections.abc import Callable
from typing import Final, NoReturn

from relay.domain.errors import quoted

_CAP_MS = 86_400_000
_LONGEST_TEXT = 512
_DEEPEST = 32

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<sign>[-+*/(),])"
    r"|(?P<end>\Z)"
)


def _divide(x: float, y: float) -> float:
    if y == 0:
        return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1.0, y)
    return x / y


def _pow(x: float, y: float) -> float:
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and y % 2 == 1 else math.inf
    except ValueError:
        # Zero to a negative power, or a root of a negative number.
        return math.inf if x == 0 else math.nan


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf


def _sqrt(x: float) -> float:
    return math.nan if x < 0 else math.sqrt(x)


def _floor(x: float) -> float:
    return float(math.floor(x)) if math.isfinite(x) else x


def _round(x: float) -> float:
    """To the nearest integer, halves away from zero."""
    below = _floor(abs(x))
    return math.copysign(below + 1 if abs(x) - below >= 0.5 else below, x)


def _min(x: float, y: float) -> float:
    return math.nan if math.isnan(x) or math.isnan(y) else min(x, y)


_UNARY: Final[dict[str, Callable[[float], float]]] = {
    "sqrt": _sqrt,
    "abs": abs,
    "exp": _exp,
    "floor": _floor,
    "ceil": lambda x: -_floor(-x),
    "round": _round,
}
_BINARY: Final[dict[str, Callable[[float, float], float]]] = {
    "pow": _pow,
    "min": _min,
    "max": lambda x, y: -_min(-x, -y),
}
_ARITHMETIC: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}


_Step = Callable[[list[float], float], None]
"""One step of a program: changes the stack, given `retried`."""


def _push(number: float) -> _Step:
    return lambda stack, _: stack.append(number)


def _push_retried(stack: list[float], retried: float) -> None:
    stack.append(retried)


def _apply(function: Callable[[float], float]) -> _Step:
    return lambda stack, _: stack.append(function(stack.pop()))


def _combine(function: Callable[[float, float], float]) -> _Step:
    def step(stack: list[float], _: float) -> None:
        right = stack.pop()
        stack.append(function(stack.pop(), right))

    return step


class RetryDelay:
    """A compiled expression. `text` is kept to the letter; two are equal when their texts are.

    ValueError says what is wrong and at which character (counted from 1).

    >>> RetryDelay("max(1000, pow(2, retried) * 100)").delay_ms(5)
    3200
    >>> RetryDelay("1000 * (1 + retires)")
    Traceback (most recent call last):
    ValueError: "1000 * (1 + retires)" has an unknown name "retires" at character 13
    """

    __slots__ = ("_program", "text")

    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST_TEXT:
            raise ValueError(f"{quoted(text)} is longer than {_LONGEST_TEXT} characters")
        self.text = text
        self._program = _Parser(text).program()

    def delay_ms(self, retried: int) -> int:
        """The delay before the next retry, `retried` being the retries already made (0 before the first).

        A negative or infinite result, or one that is no number, means no delay; one day is the most.
        """
        stack: list[float] = []
        for step in self._program:
            step(stack, float(retried))
        (result,) = stack
        return int(min(result, _CAP_MS)) if math.isfinite(result) and result > 0 else 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RetryDelay) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"RetryDelay({self.text!r})"


class _Parser:
    """Recursive descent, a method per line of the grammar; each leaves its code at the end of the program."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._steps: list[_Step] = []
        self._depth = 0
        self._end = 0
        self._advance()

    def program(self) -> tuple[_Step, ...]:
        self._expr()
        if self._kind != "end":
            self._refuse(f"has an unexpected {quoted(self._token)}")
        return tuple(self._steps)

    def _advance(self) -> None:
        self._start = self._end
        while self._text[self._start : self._start + 1] in (" ", "\t"):
            self._start += 1
        match = _TOKEN.match(self._text, self._start)
        if match is None or match.lastgroup is None:
            self._refuse(f"has an unexpected {quoted(self._text[self._start])}")
        self._kind, self._token, self._end = match.lastgroup, match.group(), match.end()

    def _refuse(self, problem: str) -> NoReturn:
        raise ValueError(f"{quoted(self._text)} {problem} at character {self._start + 1}")

    def _accept(self, *signs: str) -> str | None:
        if self._kind != "sign" or self._token not in signs:
            return None
        token = self._token
        self._advance()
        return token

    def _expect(self, sign: str) -> None:
        if self._accept(sign) is None:
            self._refuse(f"lacks {quoted(sign)}")

    def _expr(self) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            self._refuse(f"is nested more than {_DEEPEST} levels deep")
        self._term()
        while sign := self._accept("+", "-"):
            self._term()
            self._steps.append(_combine(_ARITHMETIC[sign]))
        self._depth -= 1

    def _term(self) -> None:
        self._unary()
        while sign := self._accept("*", "/"):
            self._unary()
            self._steps.append(_combine(_ARITHMETIC[sign]))

    def _unary(self) -> None:
        sign = self._accept("-", "+")
        self._primary()
        if sign == "-":
            self._steps.append(_apply(operator.neg))

    def _primary(self) -> None:
        if self._kind == "number":
            self._steps.append(_push(float(self._token)))
            self._advance()
        elif self._kind == "name":
            self._name()
        elif self._accept("("):
            self._expr()
            self._expect(")")
        else:
            self._refuse('lacks a number, "retried", a function or "("')

    def _name(self) -> None:
        name = self._token
        if name == "retried":
            self._steps.append(_push_retried)
            self._advance()
        elif name in _UNARY:
            self._advance()
            self._expect("(")
            self._expr()
            self._expect(")")
            self._steps.append(_apply(_UNARY[name]))
        elif name in _BINARY:
            self._advance()
            self._expect("(")
            self._expr()
            self._expect(",")
            self._expr()
            self._expect(")")
            self._steps.append(_combine(_BINARY[name]))
        else:
            self._refuse(f"has an unknown name {quoted(name)}")
