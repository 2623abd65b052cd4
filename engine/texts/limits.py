"""Limits of time and size for Python code of others that is run in this thread: chat templates."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")

LARGEST = 10_000_000
"""Characters or items of anything that a template makes by an operator."""
_SIZED = frozenset({"*", "+", "%", "**"})
"""Operators by which a short template makes a long text."""


class LimitError(Exception):
    """A limit was reached; the message says which."""


class _TooLong(BaseException):
    """Raised in a thread by another one, after its time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """Call a function, and interrupt it after a time, between two steps of its Python code.

    Args:
        seconds: by the clock.
        call: without side effects.

    Raises:
        LimitError: the time is over.
    """
    thread, lock, over = threading.get_ident(), threading.Lock(), False
    raised = False

    def interrupt() -> None:
        nonlocal raised
        with lock:
            if not over:
                raised = True
                _raise(thread, _TooLong)

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    try:
        try:
            timer.start()
            found = call()
        finally:
            with lock:
                over = True
            timer.cancel()
        if raised:
            _raise(thread, None)  # it came too late to interrupt anything
    except _TooLong:
        raise LimitError(f"it takes longer than {seconds:g} s") from None
    return found


def _raise(thread: int, error: type[BaseException] | None) -> None:
    given = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)


@contextmanager
def sized_operators() -> Iterator[None]:
    """Inside, operators in templates of Jinja's sandbox refuse to make anything huge.

    Templates are compiled inside, or their operators are not looked at.
    """
    from jinja2.sandbox import SandboxedEnvironment

    before = SandboxedEnvironment.intercepted_binops, SandboxedEnvironment.call_binop

    def call_binop(self: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > LARGEST:
            raise LimitError(f"{operator} makes something huge")
        return before[1](self, context, operator, left, right)

    SandboxedEnvironment.intercepted_binops = _SIZED
    SandboxedEnvironment.call_binop = call_binop  # type: ignore[method-assign]
    try:
        yield
    finally:
        SandboxedEnvironment.intercepted_binops = before[0]
        SandboxedEnvironment.call_binop = before[1]  # type: ignore[method-assign]


def _size(operator: str, left: Any, right: Any) -> int:
    """How large a result would be, at most."""
    numbers = [each for each in (left, right) if isinstance(each, int)]
    lengths = [len(each) for each in (left, right) if hasattr(each, "__len__")]
    if operator == "*" and numbers and lengths:
        return int(numbers[0]) * lengths[0]
    if operator == "+":
        return sum(lengths)
    if operator == "**" and len(numbers) == 2:
        return int(abs(left).bit_length() * max(0, right))
    if operator == "%" and isinstance(left, str):
        return sum(int(run) for run in _digits(left)) + sum(lengths)
    return 0


def _digits(text: str) -> list[str]:
    return "".join(c if c.isascii() and c.isdigit() else " " for c in text).split()
