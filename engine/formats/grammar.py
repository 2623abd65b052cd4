"""The grammar of formats: what users type, and what recipes and tables show.

``FORMAT[-option…][:key[=value]…][+method[value][:key[=value]…]…]``, for example ``int4-g128``,
``int8-asym``, ``nf4-g64:dq`` or ``int4-g128+gptq:damp=.02:actorder``. A `Format` parses, checks
and prints itself. It has one printed form, which omits defaults except the group size and a
method's value. No tensors here: `engine.quant.quantize` applies a format to a weight.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from decimal import Decimal

import msgspec

from engine.errors import FormatError
from engine.formats.catalogue import (
    BASES,
    GROUP,
    METHODS,
    Base,
    Keys,
    Number,
    Strategy,
    Value,
    takes_option,
    why_impossible,
)

_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?")
_AROUND_MARKS = re.compile(r"\s*([+:=])\s*")
_BLOCK = re.compile(r"block([0-9]{1,7})")


FOLDED = ("smooth", "awq")
"""Methods that scale input channels."""
CALIBRATED = (*FOLDED, "imatrix", "gptq", "outlier")
"""Methods that use calibration inputs; ``+a8:static`` does too."""


class Method(msgspec.Struct, frozen=True):
    """One method of a format, as in ``+gptq:damp=.02``."""

    name: str
    value: float | None = None
    """The number written behind the name, as in ``smooth.5``."""
    options: tuple[tuple[str, Value], ...] = ()
    """Keys that differ from their defaults, in printing order."""

    def __str__(self) -> str:
        value = "" if self.value is None else _print_number(self.value)
        return self.name + value + _print_keys(self.options, METHODS[self.name].keys)


class Format(msgspec.Struct, frozen=True):
    """How a weight is stored, and the methods that find its codes.

    Created by `parse_format`; ``str(format)`` is the canonical text, and parses to an equal format.

    Raises:
        FormatError: The combination is impossible; the message says why.
    """

    name: str
    """The format before options and methods: ``int4``, ``fp8-e4m3``, ``q4_k``."""
    strategy: Strategy | None = None
    """What shares one scale: a group of a row, a channel (row), the tensor, or a block."""
    group_size: int | None = None
    """Weights that share a scale, where that is a number: of a group or a block."""
    symmetric: bool = True
    """Whether codes are symmetric about 0, with no zero point."""
    options: tuple[tuple[str, Value], ...] = ()
    """Keys of the format that differ from their defaults; ``sparse`` is in percent."""
    methods: tuple[Method, ...] = ()
    """In the order smooth, hadamard, awq, clip or hqq, imatrix, gptq, outlier, a8."""

    def __post_init__(self) -> None:
        if self.name not in BASES:
            raise FormatError(_unknown("format", self.name, BASES))
        for method in self.methods:
            if method.name not in METHODS:
                raise FormatError(_unknown("method", method.name, METHODS))
        methods = [(m.name, [key for key, _ in m.options]) for m in self.methods]
        keys = [key for key, _ in self.options]
        why = why_impossible(
            self.name, self.strategy, self.group_size, self.symmetric, methods, keys
        )
        if why is not None:
            raise FormatError(f"{self} is not possible: {why}")

    @property
    def family(self) -> str:
        """The name of its family: ``integer``, ``gguf``."""
        return BASES[self.name].family

    @property
    def bits(self) -> int:
        """Bits of one code, without scales and zero points."""
        return BASES[self.name].bits

    @property
    def kept(self) -> bool:
        """Whether weights are only cast, not quantised: fp32, fp16 or bf16."""
        return BASES[self.name].kept

    def __str__(self) -> str:
        text = self.name + self._print_options()
        text += _print_keys(self.options, BASES[self.name].keys)
        return "+".join([text, *map(str, self.methods)])

    def _print_options(self) -> str:
        base = BASES[self.name]
        text = ""
        if "gN" in base.options and self.group_size is not None:
            text = f"-g{self.group_size}"
        elif self.strategy == "block" and any(map(_BLOCK.fullmatch, base.options)):
            text = f"-block{self.group_size}"
        elif self.strategy != base.strategy:
            text = f"-{self.strategy}"
        if self.symmetric != base.symmetric:
            text += "-sym" if self.symmetric else "-asym"
        return text


def without_blanks(text: str) -> str:
    """A format as typed in lower case, without blanks around it and its marks: ``int4 + clip``."""
    return _AROUND_MARKS.sub(r"\1", text.strip().lower())


def parse_format(text: str) -> Format:
    """Parse a format, ignoring case and blanks around it and its marks.

    Raises:
        FormatError: Not a format, or an impossible combination. The message says what is wrong, and
            for a misspelt name which known one is nearest.
    """
    head, *tails = without_blanks(text).split("+")
    spelled, *keys = head.split(":")
    name, words = _split_name(spelled)
    base = BASES[name]
    strategy, group_size, symmetric = _read_options(name, base, words)
    methods: dict[str, Method] = {}
    for tail in tails:
        method = _read_method(tail)
        if method.name in methods:
            raise FormatError(f"{_quoted(text)} has the method '+{method.name}' twice")
        methods[method.name] = method
    return Format(
        name,
        strategy,
        group_size,
        symmetric,
        _read_keys(name, keys, base.keys),
        tuple(methods[known] for known in METHODS if known in methods),
    )


def why_not_built(fmt: Format) -> str | None:
    """Why this version cannot quantise to ``fmt``; None if it can."""
    names = {method.name: dict(method.options) for method in fmt.methods}
    missing = ""
    if "hadamard" in names and "outlier" in names:
        missing = "'+hadamard' mixes the channels that '+outlier' would keep"
    elif "hadamard" in names and "imatrix" in names:
        missing = "'+hadamard' mixes the channels whose importance '+imatrix' weighs by"
    elif "hadamard" in names and "static" in names.get("a8", {}):
        missing = "the range of inputs that '+hadamard' has rotated is not gathered"
    return f"{fmt} is not yet built: {missing}" if missing else None


def folds(fmt: Format) -> bool:
    """Whether the operation before the layer must absorb a scale per channel."""
    return any(
        method.name in FOLDED and ("online", True) not in method.options for method in fmt.methods
    )


def without_folds(fmt: Format) -> Format:
    """The format without the methods whose scale another operation absorbs."""
    kept = (
        method
        for method in fmt.methods
        if method.name not in FOLDED or ("online", True) in method.options
    )
    return msgspec.structs.replace(fmt, methods=tuple(kept))


def needs_calibration(fmt: Format) -> bool:
    """Whether calibration inputs affect what a layer in this format computes."""
    return any(map(_calibrates, fmt.methods))


def weighs_alone(fmt: Format) -> bool:
    """Whether the inputs of a layer affect nothing but the weights of errors, by ``+imatrix``."""
    calibrated = [method.name for method in fmt.methods if _calibrates(method)]
    return calibrated == ["imatrix"]


def without_calibration(fmt: Format) -> Format:
    """The format without the methods that need calibration inputs."""
    kept = tuple(method for method in fmt.methods if not _calibrates(method))
    return msgspec.structs.replace(fmt, methods=kept)


def _calibrates(method: Method) -> bool:
    return method.name in CALIBRATED or (method.name == "a8" and ("static", True) in method.options)


def why_not_alone(fmt: Format) -> str | None:
    """Why a weight without inputs does not determine the result; None if it does."""
    for method in fmt.methods:
        if method.name in CALIBRATED or method.name == "a8":
            return f"'+{method.name}' of {fmt} depends on a layer's inputs, not only on its weights"
    return None


def parse_built(text: str) -> Format:
    """Parse a format that this version can quantise to.

    Raises:
        FormatError: It does not parse, or is not built.
    """
    fmt = parse_format(text)
    if (why := why_not_built(fmt)) is not None:
        raise FormatError(why)
    return fmt


# --- parsing -------------------------------------------------------------------------------------


def _split_name(spelled: str) -> tuple[str, list[str]]:
    words = spelled.split("-")
    for count in (2, 1):
        if (name := "-".join(words[:count])) in BASES:
            return name, words[count:]
    raise FormatError(_unknown("format", spelled, BASES))


def _read_options(
    name: str, base: Base, words: list[str]
) -> tuple[Strategy | None, int | None, bool]:
    strategy, group_size, symmetric = base.strategy, base.group_size, base.symmetric
    seen: dict[str, str] = {}
    for word in words:
        group = GROUP.fullmatch(word)
        if not takes_option(base, word):
            raise FormatError(_unknown_option(name, "-", word, base.options))
        concern = "sign" if word in ("sym", "asym") else "strategy"
        if concern in seen:
            raise FormatError(f"{name} takes one of '-{seen[concern]}' and '-{word}', not both")
        seen[concern] = word
        if concern == "sign":
            symmetric = word == "sym"
        elif group:
            strategy = "block" if base.strategy == "block" else "group"
            group_size = int(group[1])
        elif block := _BLOCK.fullmatch(word):
            strategy, group_size = "block", int(block[1])
        else:
            strategy, group_size = ("channel" if word == "channel" else "tensor"), None
    return strategy, group_size, symmetric


def _read_method(text: str) -> Method:
    spelled, *keys = text.split(":")
    name = max((m for m in METHODS if spelled.startswith(m)), key=len, default=None)
    value = spelled.removeprefix(name) if name is not None else ""
    if name is None or (value and not _NUMBER.fullmatch(value)):
        raise FormatError(_unknown("method", spelled, METHODS))
    rule = METHODS[name]
    if value and rule.value is None:
        raise FormatError(f"'+{name}' takes no value, but '{_short(value)}' follows it")
    number = None
    if rule.value is not None:
        number = _read_number(f"+{name}", value, rule.value) if value else rule.value.default
    return Method(name, number, _read_keys(f"+{name}", keys, rule.keys))


def _read_keys(owner: str, texts: list[str], known: Keys) -> tuple[tuple[str, Value], ...]:
    found: dict[str, Value] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if key not in known:
            raise FormatError(_unknown_option(owner, ":", key, known))
        if key in found:
            raise FormatError(f"'{owner}' has the option ':{key}' twice")
        number = known[key]
        if number is None and equals:
            raise FormatError(f"':{key}' of '{owner}' takes no value, found '{_short(text)}'")
        found[key] = True if number is None else _read_number(f"{owner}:{key}", value, number)
    return tuple(
        (key, found[key])
        for key, number in known.items()
        if key in found and not (number is not None and found[key] == number.default)
    )


def _read_number(owner: str, text: str, number: Number) -> float:
    digits = text.removesuffix("%") if number.percent else text
    right_unit = number.percent == text.endswith("%")
    if right_unit and _NUMBER.fullmatch(digits):
        value = float(digits)
        if number.low <= value <= number.high:
            return value
    unit = "%" if number.percent else ""
    raise FormatError(
        f"'{owner}' takes a number from {_print_number(number.low)}{unit} to "
        f"{_print_number(number.high)}{unit}, found '{_short(text)}'"
    )


# --- printing ------------------------------------------------------------------------------------


def _print_number(value: float) -> str:
    """The shortest digits that read back as the same float, without exponent: ``.5``, ``6``."""
    text = f"{Decimal(repr(value)):f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text.removeprefix("0") or "0"


def _print_keys(options: Iterable[tuple[str, Value]], known: Keys) -> str:
    text = ""
    for key, value in options:
        text += f":{key}"
        number = known[key]
        if number is not None:
            text += "=" + _print_number(value) + ("%" if number.percent else "")
    return text


def _short(text: str) -> str:
    printable = text.encode("unicode_escape").decode("ascii")
    return printable if len(printable) <= 60 else printable[:59] + "…"


def _quoted(text: str) -> str:
    return f"'{_short(text.strip())}'"


def _nearest(word: str, known: Iterable[str]) -> str | None:
    names = list(known)
    if close := difflib.get_close_matches(word, names, n=1, cutoff=0.8):
        return close[0]
    stem = word.split("-")[0]
    if begun := [name for name in names if stem and name.startswith(stem + "-")]:
        return begun[0]
    if contained := [name for name in names if stem.startswith(name)]:
        return max(contained, key=len)
    return next(iter(difflib.get_close_matches(stem, names, n=1, cutoff=0.6)), None)


def _unknown(what: str, spelled: str, known: Iterable[str]) -> str:
    known = list(known)
    nearest = _nearest(spelled, known)
    hint = f"did you mean '{nearest}'?" if nearest else "known are " + ", ".join(known)
    return f"unknown {what} {_quoted(spelled)}: {hint}"


def _unknown_option(owner: str, mark: str, word: str, known: Iterable[str]) -> str:
    known = list(known)
    nearest = _nearest(word, known)
    hint = f"did you mean '{mark}{nearest}'? " if nearest else ""
    takes = ", ".join(mark + option for option in known) or f"nothing after '{mark}'"
    return f"unknown option '{mark}{_short(word)}': {hint}'{owner}' takes {takes}"
