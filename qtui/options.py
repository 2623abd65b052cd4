"""Options that every measuring command shares, and what they say about `Settings`."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import msgspec
import typer

from engine.errors import UsageError
from engine.profiles import DEFAULT_PROFILE, Profile, load_profile
from engine.protocol import Settings

DTYPES = ("fp32", "fp16", "bf16")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="demo, a folder, or a hub id", show_default=False)
]
FormatsOption = Annotated[
    str | None, typer.Option("--formats", metavar="A,B", help="formats; the profile's if not given")
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", metavar="F", help="F everywhere, head and embedding kept"),
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", metavar="FILE|NAME", help="a recipe file, or Q4_K_M and its kin"),
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH|-", help="write a JSON document; - prints it alone"),
]
AsciiOption = Annotated[bool, typer.Option("--ascii", help="draw with ASCII characters only")]
ThemeOption = Annotated[
    str | None, typer.Option("--theme", metavar="NAME", help="colours; `qtui doctor` lists them")
]
FpsOption = Annotated[
    int | None,
    typer.Option("--fps", metavar="N", min=1, max=60, help="repaints a second; the profile's"),
]


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What may be given to any command that measures; None where it was not."""

    profile: Annotated[
        str, typer.Option("--profile", "-P", metavar="NAME", help="how thoroughly to measure")
    ] = DEFAULT_PROFILE
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE|DATASET", help="evaluation text"),
    ] = None
    calib: Annotated[
        str | None,
        typer.Option("--calib", metavar="FILE|DATASET", help="calibration text"),
    ] = None
    calib_tokens: Annotated[
        int | None,
        typer.Option("--calib-tokens", metavar="N", help="tokens of calibration text"),
    ] = None
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="tokens of evaluation text")
    ] = None
    seq_len: Annotated[
        int | None, typer.Option("--seq-len", metavar="N", help="tokens in a window")
    ] = None
    stride: Annotated[
        int | None,
        typer.Option("--stride", metavar="N", help="overlapping windows, N targets of each count"),
    ] = None
    device: Annotated[
        str | None, typer.Option("--device", metavar="cpu|cuda:N|auto", help="where to run")
    ] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="fp32|fp16|bf16", help="what to run in")
    ] = None
    memory_budget: Annotated[
        str | None,
        typer.Option("--memory-budget", metavar="8GiB", help="for cached states and logits"),
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N")] = None
    fresh: Annotated[bool, typer.Option("--fresh", help="measure anew what is known")] = False
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="let code that comes with the checkpoint run"),
    ] = False

    def resolve(self) -> tuple[Settings, Profile]:
        """The profile's settings with what was given laid over them, and the profile itself.

        Raises:
            UsageError: a value that cannot be; the message names the option.
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
            text=None if self.text is None else located(self.text),
            calib=None if self.calib is None else located(self.calib),
            calib_tokens=self.calib_tokens,
            tokens=self.tokens,
            seq_len=self.seq_len,
            stride=self.stride,
            device=self.device,
            dtype=self.dtype,
            memory_budget=None if self.memory_budget is None else size_in_bytes(self.memory_budget),
            seed=self.seed,
            fresh=self.fresh,
            trust_remote_code=self.trust_remote_code,
        )
        if self.stride == 0:
            settings = msgspec.structs.replace(settings, stride=None)
        return settings, profile


def shares_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option of `Shared`; it takes them as its last parameter, ``shared``."""
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
    ]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        values = {name: given.pop(name) for name in Shared.__struct_fields__}
        command(**given, shared=Shared(**values))

    parameters = [*own, *options]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def not_yet(what: str, why: str) -> UsageError:
    """What is planned and not there, as an error."""
    return UsageError(f"{what} cannot be used yet: {why}")


def split_formats(given: str | None) -> tuple[str, ...]:
    """``A,B`` as formats, each once; empty if none were given.

    Raises:
        UsageError: nothing stands between two commas.
    """
    if given is None:
        return ()
    formats = [part.strip() for part in given.split(",")]
    if not all(formats):
        raise UsageError(f"--formats is {given!r}, expected formats with commas between them")
    return tuple(dict.fromkeys(formats))


def located(given: str) -> str:
    """A path that exists, made absolute, since an engine may run in another folder; else as is."""
    path = expanded(given)
    return str(path.resolve()) if path.exists() else given


def expanded(given: str) -> Path:
    """A path with ``~`` written out.

    Raises:
        UsageError: it names the home of a user there is not.
    """
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{given}: there is no such user's home folder") from error


def located_model(given: str) -> str:
    """As `located`; ``demo`` stays the bundled checkpoint whatever lies in this folder."""
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
