"""Limits of time and size for Python code of others that is run in this thread: chat templates."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, TypeVar

T = TypeVar("T")

LARGEST = 10_000_000
"""Characters or items of anything that a template makes."""
WIDEST = 1000
"""Characters by which JSON may be indented."""
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
def sized_templates() -> Iterator[None]:
    """Inside, templates of Jinja's sandbox refuse to make anything huge.

    Neither by operators, nor by filters and methods, nor by writing it piece by piece.

    Templates are compiled inside, or their operators and filters are not looked at.
    """
    from jinja2 import runtime
    from jinja2.sandbox import SandboxedEnvironment as Sandbox

    by_operator, by_call, join = Sandbox.call_binop, Sandbox.call, runtime.str_join

    def call_binop(self: Any, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check(_size(operator, left, right), operator)
        return by_operator(self, context, operator, left, right)

    def call(self: Any, context: Any, function: Any, *given: Any, **named: Any) -> Any:
        method = getattr(function, "__wrapped__", function)  # Jinja wraps ``str.format``
        name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
        _check(_made(name, (owner, *given, *named.values())), name)
        return by_call(self, context, function, *given, **named)

    def set_filters(self: Any, filters: Mapping[str, Any]) -> None:
        self.__dict__["filters"] = _Filters()
        for name, function in filters.items():
            self.filters[name] = function

    patched = {
        "intercepted_binops": _SIZED,
        "call_binop": call_binop,
        "call": call,
        "concat": staticmethod(_joined),
        "filters": property(lambda self: self.__dict__["filters"], set_filters),
    }
    with ExitStack() as stack:
        for name, instead in patched.items():
            stack.enter_context(_patched(Sandbox, name, instead))
        said = partial(_joined_texts, join)
        stack.enter_context(_patched(runtime, "str_join", said))
        yield


@contextmanager
def _patched(owner: Any, name: str, instead: object) -> Iterator[None]:
    """Inside, an attribute is another one."""
    absent = object()
    before = vars(owner).get(name, absent)
    setattr(owner, name, instead)
    try:
        yield
    finally:
        if before is absent:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


_ITEMS = (Iterator, range, Mapping, Set)


class _Filters(dict[str, Any]):
    """Filters of an environment, which are given nothing of which they make something huge."""

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        @wraps(function)
        def limited(*given: Any, **named: Any) -> Any:
            if name == "join":  # some can be read only once
                given = tuple(list(each) if isinstance(each, _ITEMS) else each for each in given)
            _check(_made(name, (*given, *named.values())), name)
            return function(*given, **named)

        super().__setitem__(name, limited)


def _joined(parts: Iterable[str]) -> str:
    """The text that a template writes."""
    found, length = [], 0
    for part in parts:
        length += len(part)
        _check(length, "it")
        found.append(part)
    return "".join(found)


def _joined_texts(join: Callable[[Iterable[Any]], str], parts: Iterable[Any]) -> str:
    parts = tuple(parts)
    _check(sum(len(each) for each in parts if isinstance(each, str)), "~")
    return join(parts)


def _check(size: int, what: str) -> None:
    if size > LARGEST:
        raise LimitError(f"{what} makes something huge")


def _made(name: str, given: Sequence[Any]) -> int:
    """How long the result of a filter or method is, at most.

    Args:
        name: of the filter or method.
        given: what it works on, and what it is given.
    """
    numbers = [abs(each) for each in given if isinstance(each, int)]
    texts = [each for each in given if isinstance(each, str)]
    largest = max(numbers, default=0)
    match name, texts:
        case "format" | "format_map", [form, *_]:
            return largest + sum(int(run) for run in _digits(form)) + sum(map(len, texts))
        case "replace", [text, old, new]:
            return len(text) + len(new) * (text.count(old) if old else len(text) + 1)
        case "indent" | "expandtabs" | "wordwrap", [text, *others]:
            return max(largest, *map(len, others), 1) * (len(text) + 1)
        case "join", _:
            items = [item for each in given if isinstance(each, list | tuple) for item in each]
            between = sum(map(len, texts)) * len(items)
            return between + sum(len(item) for item in items if isinstance(item, str))
        case "tojson", _:
            return largest * LARGEST if largest > WIDEST else 0
    return largest


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
        given = right if isinstance(right, tuple) else (right,)
        widths = [abs(each) for each in given if isinstance(each, int)] if "*" in left else []
        return sum(int(run) for run in _digits(left)) + sum(lengths) + sum(widths)
    return 0


def _digits(text: str) -> list[str]:
    return "".join(c if c.isascii() and c.isdigit() else " " for c in text).split()
