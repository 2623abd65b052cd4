"""Options that every measuring command shares, and the `Settings` they give."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec
import typer

from engine.errors import UsageError
from engine.profiles import DEFAULT_PROFILE, RANGES, Profile, load_profile
from engine.protocol import By, Direction, Settings, Sweep
from engine.texts.naming import on_disk
from engine.workers.asked import check_ray, parse_workers

Word = TypeVar("Word", bound=str)
DTYPES = ("fp32", "fp16", "bf16")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
UNITS: tuple[By, ...] = get_args(By)
EXACT = ("all", "top:K", "none")
"""What ``--exact`` may be."""

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="demo, a folder, a .gguf file, or a hub id", show_default=False
    ),
]
FormatsOption = Annotated[
    str | None, typer.Option("--formats", metavar="A,B", help="formats (default: the profile's)")
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="F", help="one format for all layers but head and embedding"),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="FILE|NAME", help="a recipe file, or a built-in such as Q4_K_M"
    ),
]
DirectionOption = Annotated[
    str,
    typer.Option(
        "--direction",
        metavar="|".join(DIRECTIONS),
        help="quantise one layer at a time, or all layers but one",
    ),
]
ExactOption = Annotated[
    str,
    typer.Option(
        "--exact",
        metavar="|".join(EXACT),
        help="layers to measure after the estimates, worst first",
    ),
]
ByOption = Annotated[
    str,
    typer.Option("--by", metavar="|".join(UNITS), help="unit to change at once"),
]
DrawsOption = Annotated[
    int | None,
    typer.Option("--draws", metavar="N", help="label samples per estimate, 1 to 64"),
]
WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|cuda:0,cuda:1|auto|ray://HOST:PORT",
        help="who measures in a sweep: processes on this machine, or hosts of a Ray cluster",
    ),
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH|-", help="write JSON to a file; - prints only JSON"),
]
NoMouseOption = Annotated[
    bool, typer.Option("--no-mouse", help="leave the mouse to the terminal: it selects text")
]
AsciiOption = Annotated[bool, typer.Option("--ascii", help="draw with ASCII characters only")]
ThemeOption = Annotated[
    str | None,
    typer.Option("--theme", metavar="NAME", help="colour theme; `qtui doctor` lists them"),
]
FpsOption = Annotated[
    int | None,
    typer.Option(
        "--fps", metavar="N", min=1, max=60, help="repaints per second (default: profile's)"
    ),
]


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """Options of every command that measures; None where not given."""

    profile: Annotated[
        str, typer.Option("--profile", "-P", metavar="NAME", help="how thoroughly to measure")
    ] = DEFAULT_PROFILE
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE|DATASET[:COLUMN]", help="evaluation text"),
    ] = None
    calib: Annotated[
        str | None,
        typer.Option("--calib", metavar="FILE|DATASET[:COLUMN]", help="calibration text"),
    ] = None
    imatrix: Annotated[
        str | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="importance matrix of llama.cpp, for +imatrix instead of calibration text",
        ),
    ] = None
    calib_tokens: Annotated[
        int | None,
        typer.Option("--calib-tokens", metavar="N", help="tokens of calibration text"),
    ] = None
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="tokens of evaluation text")
    ] = None
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", metavar="N", help="tokens per window")
    ] = None
    stride: Annotated[
        int | None,
        typer.Option("--stride", metavar="N", help="overlapping windows, scoring N tokens of each"),
    ] = None
    bos: Annotated[
        bool, typer.Option("--bos", help="begin each window with the tokenizer's BOS token")
    ] = False
    device: Annotated[
        str | None, typer.Option("--device", metavar="cpu|cuda:N|auto", help="device to run on")
    ] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="|".join(DTYPES), help="dtype to compute in")
    ] = None
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            metavar="8GiB",
            help="memory for a checkpoint, its weights included; more is streamed from disk",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="random seed")] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="ignore saved results")] = False
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="run code that comes with the checkpoint"),
    ] = False
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="read files that are links out of the checkpoint"),
    ] = False

    def resolve(self) -> tuple[Settings, Profile]:
        """The profile's settings overridden by the given options, and the profile itself.

        Raises:
            UsageError: a value is out of range; the message names the option.
        """
        for option, value, least in (
            ("--tokens", self.tokens, 2),
            ("--calib-tokens", self.calib_tokens, 2),
            ("--seq-len", self.seq_len, 2),
            ("--stride", self.stride, 0),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{option} is {value}, expected at least {least}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UsageError(f"--dtype is {self.dtype!r}, expected {', '.join(DTYPES)}")
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device is {self.device!r}, expected cpu, cuda, cuda:N or auto")
        profile = load_profile(self.profile)
        settings = profile.settings(
            self.profile,
            text=None if self.text is None else located_text(self.text),
            calib=None if self.calib is None else located_text(self.calib),
            imatrix=None if self.imatrix is None else located(self.imatrix),
            calib_tokens=self.calib_tokens,
            tokens=self.tokens,
            seq_len=self.seq_len,
            stride=self.stride,
            bos=self.bos,
            device=self.device,
            dtype=self.dtype,
            memory_budget=None if self.memory_budget is None else size_in_bytes(self.memory_budget),
            seed=self.seed,
            fresh=self.fresh,
            trust_remote_code=self.trust_remote_code,
            follow_links=self.follow_links,
        )
        if self.stride == 0:
            settings = msgspec.structs.replace(settings, stride=None)
        return settings, profile


def shares_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add every option of `Shared` to a command, which gets them as ``shared``.

    An option that the command declares itself, such as one that may be given several times, is the
    command's own: it is not in ``shared``.
    """
    hints = get_type_hints(command, include_extras=True)
    shared_hints = get_type_hints(Shared, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != "shared"
    ]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=shared_hints[field.name],
        )
        for field in msgspec.structs.fields(Shared)
        if field.name not in hints
    ]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        values = {option.name: given.pop(option.name) for option in options}
        command(**given, shared=Shared(**values))

    parameters = [*own, *options]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def not_yet(what: str, why: str) -> UsageError:
    """The error for a feature that is planned but not available."""
    return UsageError(f"{what} is not available yet: {why}")


def sweep_asked(
    formats: Sequence[str], direction: str, exact: str, by: str, *, only: bool = False
) -> Sweep:
    """The command of a sweep.

    Raises:
        UsageError: a value is unknown; the message names the option and the nearest value.
    """
    return Sweep(
        tuple(formats),
        _one_of("--direction", direction, DIRECTIONS),
        exact=exact_of(exact),
        by=_one_of("--by", by, UNITS),
        only=only,
    )


def exact_of(given: str) -> str:
    """Which layers a sweep measures: ``all``, ``top:K`` or ``none``.

    Raises:
        UsageError: it is none of these, or K is not a positive integer.
    """
    word, colon, number = given.strip().lower().partition(":")
    if word == "top" and (colon or not number):
        if number.isascii() and number.isdecimal() and int(number) > 0:
            return f"top:{int(number)}"
        raise UsageError(
            f"--exact is {given!r}: expected a number of layers from 1 up, as in top:10"
        )
    if colon:
        word = given
    return _one_of("--exact", word, ("all", "none"), ", ".join(EXACT))


def with_draws(settings: Settings, draws: int | None) -> Settings:
    """The settings with as many draws of labels.

    Raises:
        UsageError: the number of draws is out of range.
    """
    low, high = RANGES["draws"]
    if draws is None:
        return settings
    if not low <= draws <= high:
        raise UsageError(f"--draws is {draws}, expected {low:g} to {high:g}")
    return msgspec.structs.replace(settings, draws=draws)


def with_workers(settings: Settings, workers: str | None) -> Settings:
    """The settings with these workers.

    Raises:
        UsageError: it does not say which, or Ray is needed and not installed.
    """
    if workers is not None:
        settings = msgspec.structs.replace(settings, workers=workers)
    if parse_workers(settings.workers).cluster:
        check_ray()
    return settings


def _one_of(option: str, given: str, known: Sequence[Word], expected: str = "") -> Word:
    for word in known:
        if word == given:
            return word
    near = difflib.get_close_matches(given.lower(), known, n=1, cutoff=0.5)
    meant = f": did you mean {near[0]}?" if near else ""
    raise UsageError(f"{option} is {given!r}, expected {expected or ', '.join(known)}{meant}")


def split_formats(given: str | None) -> tuple[str, ...]:
    """``A,B`` as formats, each once; empty if none were given.

    Raises:
        UsageError: a format is empty.
    """
    if given is None:
        return ()
    formats = [part.strip() for part in given.split(",")]
    if not all(formats):
        raise UsageError(f"--formats is {given!r}, expected formats separated by commas")
    return tuple(dict.fromkeys(formats))


def located(given: str) -> str:
    """A path that exists, made absolute, since an engine may run in another folder; else as is."""
    path = expanded(given)
    return str(path.resolve()) if path.exists() else given


def located_text(given: str) -> str:
    """Like `located`, for a text that may name a split and a column after colons.

    Raises:
        UsageError: it names the home of an unknown user.
    """
    try:
        found = on_disk(given)
    except RuntimeError as error:
        raise UsageError(f"{given}: there is no such user") from error
    if found is None:
        return given
    return f"{found.path.resolve()}:{found.rest}" if found.rest else str(found.path.resolve())


def expanded(given: str) -> Path:
    """A path with ``~`` written out.

    Raises:
        UsageError: it names the home of an unknown user.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{given}: there is no such user") from error


def located_model(given: str) -> str:
    """Like `located`, but ``demo`` is always the bundled checkpoint."""
    return given if given == "demo" else located(given)


def size_in_bytes(given: str) -> int:
    """``8GiB``, ``500 MB`` or a plain number as bytes: powers of 1024 with an ``i``, else 1000.

    Raises:
        UsageError: if it is no size.
    """
    found = _SIZE.fullmatch(given.strip())
    if found is None:
        raise UsageError(f"--memory-budget is {given!r}, expected a size such as 8GiB or 500MB")
    number, unit, binary = found.groups()
    if binary and not unit:
        raise UsageError(f"--memory-budget is {given!r}, expected a size such as 8GiB or 500MB")
    scale = math.pow(1024 if binary else 1000, " kmgt".index(unit.lower() or " "))
    size = math.floor(float(number) * scale)
    if size == 0:
        raise UsageError("--memory-budget is 0, expected a size such as 8GiB")
    return size
