"""Profiles: ``profiles.toml`` and the user's own over it, read strictly into Structs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import platformdirs
import tomli

from engine.errors import ProfileError
from engine.protocol import Settings

DEFAULT_PROFILE = "standard"


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One profile of ``profiles.toml``; the file itself says what each key means."""

    tokens: int
    seq_len: int
    stride: int
    batch_tokens: int
    formats: tuple[str, ...]
    sweep_formats: tuple[str, ...]
    sigma: float
    fps: int
    nice: int
    keys: dict[str, str]

    def __post_init__(self) -> None:
        for key, low, high in (
            ("tokens", 2, 1 << 40),
            ("seq_len", 2, 1 << 24),
            ("stride", 0, 1 << 24),
            ("batch_tokens", 1, 1 << 30),
            ("sigma", 0.5, 100),
            ("fps", 1, 60),
            ("nice", 0, 19),
        ):
            found = getattr(self, key)
            if not low <= found <= high:
                raise ValueError(f"`{key}` is {found}, expected {low} to {high}")
        for key in self.keys:
            if not re.fullmatch(r"[^,\s]|f\d{1,2}", key):
                raise ValueError(f"`keys.{key}` is not a single character or a function key")

    def settings(self, name: str, **given: Any) -> Settings:
        """The profile's settings with whatever was given (not None) laid over them."""
        chosen: dict[str, Any] = {
            "profile": name,
            "tokens": self.tokens,
            "seq_len": self.seq_len,
            "stride": self.stride or None,
            "batch_tokens": self.batch_tokens,
            "formats": self.formats,
            "sweep_formats": self.sweep_formats,
            "sigma": self.sigma,
        }
        chosen.update({key: value for key, value in given.items() if value is not None})
        return Settings(**chosen)


def bundled_path() -> Path:
    """``profiles.toml`` beside the packages in a checkout, inside the package when installed."""
    inside = Path(__file__).with_name("profiles.toml")
    return inside if inside.exists() else Path(__file__).parents[1] / "profiles.toml"


def user_path() -> Path:
    """Where the user's own profiles are looked for."""
    return Path(platformdirs.user_config_dir("qtui")) / "profiles.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomli.loads(path.read_text(encoding="utf-8"))
    except (tomli.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error


def load_profiles() -> dict[str, Profile]:
    """All profiles by name.

    A user's profile of a known name is laid over the bundled one, key by key; one of a new name
    is laid over ``standard``.

    Raises:
        ProfileError: naming the file and the key at fault.
    """
    layers: list[tuple[Path, dict[str, Any]]] = [(bundled_path(), _read(bundled_path()))]
    if user_path().exists():
        layers.append((user_path(), _read(user_path())))
    merged: dict[str, dict[str, Any]] = {}
    origin: dict[str, Path] = {}
    for path, tables in layers:
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise ProfileError(f"{path}: `{name}` is not a table: write [{name}]")
            under = merged.get(name, merged.get(DEFAULT_PROFILE, {}))
            keys = table.get("keys", {})
            if not isinstance(keys, dict):
                raise ProfileError(f"{path}: [{name}] `keys` is not a table")
            merged[name] = {**under, **table, "keys": {**under.get("keys", {}), **keys}}
            origin[name] = path
    profiles = {}
    for name, table in merged.items():
        try:
            profiles[name] = msgspec.convert(table, Profile)
        except msgspec.ValidationError as error:
            raise ProfileError(f"{origin[name]}: [{name}] {error}") from error
    return profiles


def load_profile(name: str = DEFAULT_PROFILE) -> Profile:
    """One profile.

    Raises:
        ProfileError: if there is none of that name; the message lists those there are.
    """
    profiles = load_profiles()
    if name not in profiles:
        known = ", ".join(profiles)
        raise ProfileError(f"no profile named {name!r}: there are {known} (see {user_path()})")
    return profiles[name]
