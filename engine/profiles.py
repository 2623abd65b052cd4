"""Profiles: the bundled ``profiles.toml`` overridden by the user's, strictly validated."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
import platformdirs
import tomli

from engine.errors import FormatError, ProfileError, UsageError
from engine.formats.grammar import parse_format
from engine.protocol import CACHE_BITS, Settings
from engine.workers.asked import parse_workers

DEFAULT_PROFILE = "standard"

T = TypeVar("T")


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profile of ``profiles.toml``; comments in that file explain each key."""

    tokens: int
    seq_len: int
    stride: int
    batch_tokens: int
    formats: tuple[str, ...]
    sweep_formats: tuple[str, ...]
    estimate_formats: tuple[str, ...]
    draws: int
    calib_tokens: int
    sigma: float
    unserved: bool = False
    workers: str = ""
    context: int = 0
    batch: int = 1
    cache_bits: int = 16
    fps: int
    nice: int
    idle_minutes: int = 10
    keys: dict[str, str]
    findings: dict[str, float]
    """From where on a figure is a finding; `engine.diagnosis.thresholds` gives them types."""

    def settings(self, name: str, **given: Any) -> Settings:
        """The profile's settings, overridden by the given values that are not None."""
        chosen: dict[str, Any] = {
            "profile": name,
            "tokens": self.tokens,
            "seq_len": self.seq_len,
            "stride": self.stride or None,
            "batch_tokens": self.batch_tokens,
            "formats": self.formats,
            "sweep_formats": self.sweep_formats,
            "estimate_formats": self.estimate_formats,
            "draws": self.draws,
            "calib_tokens": self.calib_tokens,
            "sigma": self.sigma,
            "unserved": self.unserved,
            "workers": self.workers,
            "context": self.context,
            "batch": self.batch,
            "cache_bits": self.cache_bits,
        }
        chosen.update({key: value for key, value in given.items() if value is not None})
        return Settings(**chosen)


class Origin(msgspec.Struct, frozen=True):
    """A value of a profile, and where it is defined."""

    value: Any
    path: Path
    profile: str
    """The table that defines it; another profile than its own if the value is inherited."""


Origins = dict[str, Origin]
"""By key; ``keys.4`` for an entry of ``keys``, ``findings.massive`` for one of ``findings``."""

RANGES: dict[str, tuple[float, float]] = {
    "tokens": (2, 1 << 40),
    "seq_len": (2, 1 << 24),
    "stride": (0, 1 << 24),
    "batch_tokens": (1, 1 << 30),
    "draws": (1, 64),
    "calib_tokens": (2, 1 << 40),
    "sigma": (0.5, 100),
    "context": (0, 1 << 30),
    "batch": (1, 1 << 20),
    "fps": (1, 60),
    "nice": (0, 19),
    "idle_minutes": (1, 100_000),
}
"""Smallest and largest value, both allowed."""

_TYPES = get_type_hints(Profile)
_TABLES = ("keys", "findings")
"""Fields that are tables of their own."""
_KEY = re.compile(r"[^,\s]|f\d{1,2}")


def bundled_path() -> Path:
    """``profiles.toml`` beside the packages in a checkout, inside the package when installed."""
    inside = Path(__file__).with_name("profiles.toml")
    return inside if inside.exists() else Path(__file__).parents[1] / "profiles.toml"


def user_path() -> Path:
    """Path of the user's own profiles."""
    return Path(platformdirs.user_config_dir("qtui")) / "profiles.toml"


def load_profiles() -> dict[str, Profile]:
    """All profiles by name.

    A user's profile with the name of a bundled one overrides it key by key; one with a new name
    overrides ``standard``.

    Raises:
        ProfileError: naming the file, the profile and the key at fault.
    """
    return {name: _profile(found) for name, found in _all_origins().items()}


def load_profile(name: str = DEFAULT_PROFILE) -> Profile:
    """One profile.

    Raises:
        ProfileError: no profile has this name; the message lists the known ones.
    """
    return _named(load_profiles(), name)


def origins(name: str = DEFAULT_PROFILE) -> Origins:
    """Where each value of a profile is defined, in the field order of `Profile`.

    Raises:
        ProfileError: as `load_profile` does.
    """
    return _named(_all_origins(), name)


def _named(known: dict[str, T], name: str) -> T:
    if name not in known:
        raise ProfileError(
            f"no profile named {name!r}: known are {', '.join(known)} (see {user_path()})"
        )
    return known[name]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error


def _all_origins() -> dict[str, Origins]:
    merged: dict[str, Origins] = {}
    for path in (bundled_path(), user_path()):
        if path == user_path() and not path.exists():
            continue
        tables = _read(path)
        order = list(dict.fromkeys((*merged, *tables)))
        # A new profile inherits `standard` as this file leaves it, even if that is further down.
        for name in sorted(tables, key=lambda each: (each != DEFAULT_PROFILE, each not in merged)):
            table = tables[name]
            if not isinstance(table, dict):
                raise ProfileError(f"{path}: `{name}` is not a table: write [{name}]")
            under = merged.get(name, merged.get(DEFAULT_PROFILE, {}))
            found = _flat(path, name, table)
            _check_findings(path, name, found, merged.get(DEFAULT_PROFILE))
            merged[name] = {**under, **found}
        merged = {name: merged[name] for name in order}
    return merged


def _flat(path: Path, profile: str, table: dict[str, Any]) -> Origins:
    """The values of one table, validated; each entry of a table in it becomes a key of its own.

    Raises:
        ProfileError: naming file, profile and key.
    """
    found: Origins = {}
    for key, value in table.items():
        if key not in _TYPES:
            known = ", ".join(_TYPES)
            raise ProfileError(f"{path}: [{profile}] `{key}` is unknown: known are {known}")
        if key not in _TABLES:
            found[key] = Origin(_checked(path, profile, key, value), path, profile)
            continue
        if not isinstance(value, dict):
            raise ProfileError(
                f"{path}: [{profile}] `{key}` is not a table: write [{profile}.{key}]"
            )
        check = _checked_key if key == "keys" else _checked_finding
        for name, each in value.items():
            found[f"{key}.{name}"] = Origin(check(path, profile, name, each), path, profile)
    return found


def _check_findings(path: Path, profile: str, found: Origins, standard: Origins | None) -> None:
    """The first table of the bundled profiles says which findings there are."""
    if standard is None:
        return
    known = [key for key in standard if key.startswith("findings.")]
    for key in found:
        if key.startswith("findings.") and key not in known:
            names = ", ".join(each.removeprefix("findings.") for each in known)
            raise ProfileError(f"{path}: [{profile}] `{key}` is unknown: known are {names}")


def _checked(path: Path, profile: str, key: str, value: object) -> object:
    where = f"{path}: [{profile}] `{key}`"
    try:
        found = msgspec.convert(value, _TYPES[key])
    except msgspec.ValidationError as error:
        raise ProfileError(f"{where}: {error}") from error
    if key in RANGES:
        low, high = RANGES[key]
        if not low <= found <= high:
            raise ProfileError(f"{where} is {found}, expected {low} to {high}")
    if key == "workers":
        try:
            parse_workers(str(found))
        except UsageError as error:
            raise ProfileError(f"{where}: {error}") from error
    if key == "cache_bits" and found not in CACHE_BITS:
        raise ProfileError(f"{where} is {found}, expected 16, 8 or 4")
    for format in found if isinstance(found, tuple) else ():
        _check_format(where, format)
    return found


def _checked_key(path: Path, profile: str, pressed: str, format: object) -> str:
    where = f"{path}: [{profile}] `keys.{pressed}`"
    if not _KEY.fullmatch(pressed):
        raise ProfileError(f"{where}: a key is a single character or a function key such as f5")
    if not isinstance(format, str):
        raise ProfileError(f'{where} is {format!r}, expected a format such as "int4-g128"')
    if format != "kept":
        _check_format(where, format)
    return format


def _checked_finding(path: Path, profile: str, name: str, value: object) -> float:
    where = f"{path}: [{profile}] `findings.{name}`"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProfileError(f"{where} is {value!r}, expected a number")
    if not math.isfinite(value):
        raise ProfileError(f"{where} is {value}, expected a finite number")
    return float(value)


def _check_format(where: str, format: str) -> None:
    try:
        parse_format(format)
    except FormatError as error:
        raise ProfileError(f"{where}: {error}") from error


def _profile(found: Origins) -> Profile:
    values = {key: origin.value for key, origin in found.items() if key in _TYPES}
    tables = {
        table: {
            key.removeprefix(f"{table}."): origin.value
            for key, origin in found.items()
            if key.startswith(f"{table}.")
        }
        for table in _TABLES
    }
    if missing := [key for key in _TYPES if key not in values and key not in _TABLES]:
        raise ProfileError(f"{bundled_path()} lacks `{missing[0]}`: reinstall qtui")
    return Profile(**values, keys=tables["keys"], findings=tables["findings"])
