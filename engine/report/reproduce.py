"""The command line that reproduces a measurement, stored with every saved file."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

from engine.errors import ProfileError
from engine.profiles import load_profile
from engine.protocol import Calibrate, Settings
from engine.session import Session

Verb: TypeAlias = Literal["open", "triage", "sweep", "eval", "calibrate", "export"]

OPTIONS = (
    ("text", "--text"),
    ("calib", "--calib"),
    ("tokens", "--tokens"),
    ("seq_len", "--seq-len"),
    ("stride", "--stride"),
    ("bos", "--bos"),
    ("device", "--device"),
    ("dtype", "--dtype"),
    ("memory_budget", "--memory-budget"),
    ("calib_tokens", "--calib-tokens"),
    ("seed", "--seed"),
    ("fresh", "--fresh"),
    ("trust_remote_code", "--trust-remote-code"),
    ("follow_links", "--follow-links"),
)
"""Settings with the options that say them."""
FROM_FORMATS: dict[Verb, str] = {"triage": "formats", "sweep": "sweep_formats"}
"""The setting that ``--formats`` overrides, by command."""
FROM_THE_PROFILE = ("batch_tokens", "sigma")
"""Settings that have no option: the profile alone says them."""


def command(settings: Settings, source: str, verb: Verb, extra: Sequence[str] = ()) -> str:
    """A command line, quoted for a shell, that runs with equal settings.

    Options that say what the profile says anyway are left out. Formats that differ from the
    profile's own are said with ``--formats``, unless ``extra`` says it.

    Args:
        settings: of the session.
        source: ``demo``, a folder, or a hub id.
        verb: the command; ``open`` is the terminal interface.
        extra: further words, as they are given to a program: ``["--formats", "int8"]``.
    """
    plain = _of_the_profile(settings.profile)
    words = ["qtui", *_verb(source, verb), "--profile", settings.profile]
    for name, option in OPTIONS:
        value = getattr(settings, name)
        if plain is not None and value == getattr(plain, name):
            continue
        if isinstance(value, bool):
            words += [option] if value else []
        elif name == "stride":
            words += [option, str(value or 0)]
        elif value is not None:
            words += [option, str(value)]
    if verb == "sweep" and (plain is None or settings.draws != plain.draws):
        words += ["--draws", str(settings.draws)]
    formats = FROM_FORMATS.get(verb)
    if formats and "--formats" not in extra:
        asked = getattr(settings, formats)
        if plain is None or asked != getattr(plain, formats):
            words += ["--formats", ",".join(asked)]
    if source.startswith("-"):
        # Whatever follows -- is not an option.
        return " ".join(map(quoted, [*words, *extra, "--", source]))
    return " ".join(map(quoted, [*words, *extra]))


def commands(session: Session) -> dict[str, str]:
    """What measures a session's figures again, by what it gives."""
    settings, source = session.settings, session.source
    found = {
        "weights": command(settings, source, "triage"),
        "sensitivity": command(settings, source, "sweep"),
    }
    asked = [job.command for job in session.jobs.values() if isinstance(job.command, Calibrate)]
    sets = list(dict.fromkeys(calibration(settings, source, each) for each in asked))
    for at, line in enumerate(sets, 1):
        found["calibration sets" if len(sets) == 1 else f"calibration sets, {at}"] = line
    found["the workbench"] = command(settings, source, "open")
    return found


def calibration(settings: Settings, source: str, asked: Calibrate) -> str:
    """The command line that compares calibration sets again.

    Args:
        settings: of the session.
        source: ``demo``, a folder, or a hub id.
        asked: what was compared.
    """
    plain, usual = _of_the_profile(settings.profile) or Settings(), Calibrate(sets=())
    words = [word for each in asked.sets for word in ("--sets", each)]
    if asked.texts:
        settings = msgspec.structs.replace(settings, text=None)
        words += [word for each in asked.texts for word in ("--text", each)]
    if asked.seq_lens:
        settings = msgspec.structs.replace(settings, seq_len=plain.seq_len)
        words += ["--seq-len", ",".join(map(str, asked.seq_lens))]
    if asked.method != usual.method:
        words += ["--method", asked.method]
    if asked.samples:
        words += ["--samples", ",".join(map(str, asked.samples))]
    words += [] if asked.measure else ["--checks"]
    words += [] if asked.halves else ["--no-halves"]
    return command(settings, source, "calibrate", words)


def not_in_command(settings: Settings) -> tuple[str, ...]:
    """Settings that no option can set and that the profile has changed since, as sentences."""
    plain = _of_the_profile(settings.profile)
    if plain is None:
        return (f"profile {settings.profile!r} no longer exists",)
    return tuple(
        f"{name} was {getattr(settings, name)}, profile {settings.profile!r} now "
        f"has {getattr(plain, name)}"
        for name in FROM_THE_PROFILE
        if getattr(settings, name) != getattr(plain, name)
    )


def quoted(word: str) -> str:
    """A word as a shell reads it, in one line of printable characters.

    What cannot be printed, bytes of a path that are no UTF-8 among it, is written ``$'\\x1b'``, as
    bash and zsh read it.
    """
    if word.isprintable():
        return shlex.quote(word)
    special = {0x27: "\\'", 0x5C: "\\\\"}
    written = "".join(
        special.get(byte, chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}")
        for byte in os.fsencode(word)
    )
    return f"$'{written}'"


def _verb(source: str, verb: Verb) -> list[str]:
    named = [] if source.startswith("-") else [source]
    if verb != "open":
        return [verb, *named]
    if source == "demo":
        return ["demo"]
    # A bare word could be the name of a command; a path or a hub id with its owner cannot.
    return named if "/" in source and named else ["open", *named]


def _of_the_profile(name: str) -> Settings | None:
    try:
        return load_profile(name).settings(name)
    except ProfileError:
        return None
