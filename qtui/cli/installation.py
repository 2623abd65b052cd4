"""The installation: versions, devices, terminal and paths, to paste in a bug report.

Nothing here may fail because something is missing: what is missing is the finding. No tensor
library is imported; GPUs are queried through the driver.
"""

from __future__ import annotations

import importlib.util
import locale
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from engine.errors import EngineError
from engine.profiles import bundled_path, load_profile, load_profiles, origins, user_path
from engine.report.wording import size
from engine.store import paths
from qtui.bundled import themes_folder
from qtui.views.text import printable

MISSING = "missing"
PACKAGES = (
    "qtui", "textual", "plotext", "torch", "transformers", "tokenizers", "datasets", "safetensors",
    "huggingface-hub", "numpy", "scipy", "msgspec", "tomli", "platformdirs", "typer", "psutil",
    "nvidia-ml-py", "compressed-tensors",
)  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it runs."""

    system: str
    cpu: str
    cores: int
    """Logical ones this process may use."""
    memory: int
    memory_free: int
    gpus: list[str]
    compiler: str | None


class Terminal(msgspec.Struct, frozen=True, kw_only=True):
    """The terminal it runs in."""

    stdout_is_terminal: bool
    size: tuple[int, int]
    """Columns and rows."""
    term: str | None
    colorterm: str | None
    no_color: bool
    multiplexer: str | None
    ssh: bool
    encoding: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A file or a folder it uses."""

    name: str
    path: str
    found: bool


class ProfileValue(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a profile, and where it was written."""

    key: str
    """``keys.4`` for an entry of ``[NAME.keys]``."""
    value: bool | str | int | float | list[str]
    path: str
    profile: str
    """The table that contains it."""
    own: bool
    """Whether that is the user's file."""


class ChosenProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The requested profile, value by value."""

    name: str
    values: list[ProfileValue]


class Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="schema", tag="qtui.doctor/1"):
    """Everything worth knowing when something does not work."""

    python: str
    executable: str
    versions: dict[str, str | None]
    """None where a package is missing."""
    machine: Machine
    terminal: Terminal
    places: list[Place]
    profiles: list[str]
    themes: list[str]
    problems: list[str]
    profile: ChosenProfile | msgspec.UnsetType = msgspec.UNSET
    """Absent if none was requested, or none can be read."""


def examine(profile: str | None = None) -> Report:
    """Look at everything; takes well under a second.

    Args:
        profile: one to show value by value.

    Raises:
        ProfileError: there is no profile of that name, though the others can be read.
    """
    problems: list[str] = []
    profiles: list[str] = []
    try:
        profiles = list(load_profiles())
    except EngineError as error:
        problems.append(str(error))
    chosen = _profile(profile) if profile is not None and profiles else msgspec.UNSET
    themes = _themes_and_keys(problems, profiles)
    versions = {name: _version(name) for name in PACKAGES}
    problems += [f"{name} is missing" for name, found in versions.items() if _needed(name, found)]
    return Report(
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        executable=sys.executable,
        versions=versions,
        machine=_machine(),
        terminal=_terminal(),
        places=_places(problems),
        profiles=profiles,
        themes=themes,
        problems=problems,
        profile=chosen,
    )


def _profile(name: str) -> ChosenProfile:
    values = [
        ProfileValue(
            key=key,
            value=list(origin.value) if isinstance(origin.value, tuple) else origin.value,
            path=str(origin.path),
            profile=origin.profile,
            own=origin.path == user_path(),
        )
        for key, origin in origins(name).items()
    ]
    return ChosenProfile(name=name, values=values)


def _themes_and_keys(problems: list[str], profiles: list[str]) -> list[str]:
    """Names of the themes; what is wrong with these, or with a person's keys, is a problem."""
    if importlib.util.find_spec("textual") is None:
        return []  # reported as missing; the rest can still be checked
    from qtui.screens.registry import known_keys
    from qtui.user.keymap import keymap_path, read_keymap
    from qtui.user.themes import read_themes

    themes: list[str] = []
    try:
        found, unread = read_themes()
        themes = list(found)
        problems += unread if themes else [f"{themes_folder()} has no themes"]
    except EngineError as error:
        problems.append(str(error))
    try:
        keys = load_profile().keys if profiles else {}  # their problems are already reported
        read_keymap(keymap_path(), *known_keys(keys).values())
    except EngineError as error:
        problems.append(str(error))
    return themes


def report_text(report: Report) -> str:
    """The report as a block of text."""
    machine, terminal = report.machine, report.terminal
    columns, rows = terminal.size
    about_terminal = [
        f"{columns}x{rows}",
        "a terminal" if terminal.stdout_is_terminal else "no terminal on stdout",
        f"TERM={terminal.term or MISSING}",
        f"COLORTERM={terminal.colorterm or MISSING}",
        "NO_COLOR set" if terminal.no_color else "",
        terminal.multiplexer or "",
        "over ssh" if terminal.ssh else "",
        terminal.encoding,
    ]
    lines = [
        ("python", f"{report.python} at {report.executable}"),
        *((name, found or MISSING) for name, found in report.versions.items()),
        ("system", machine.system),
        ("cpu", f"{machine.cpu}, {machine.cores} cores"),
        ("memory", f"{size(machine.memory)}, {size(machine.memory_free)} free"),
        *(("gpu", gpu) for gpu in machine.gpus or [MISSING]),
        ("compiler", machine.compiler or MISSING),
        ("terminal", ", ".join(part for part in about_terminal if part)),
        *(
            (place.name, place.path if place.found else f"{place.path} ({MISSING})")
            for place in report.places
        ),
        ("profiles", ", ".join(report.profiles) or MISSING),
        ("themes", ", ".join(report.themes) or MISSING),
        *(("problem", problem) for problem in report.problems),
        *_profile_lines(report.profile),
    ]
    width = max(len(name) for name, _ in lines)
    return "".join(f"{name:{width}}  {printable(value)}\n" for name, value in lines)


def _profile_lines(chosen: ChosenProfile | msgspec.UnsetType) -> list[tuple[str, str]]:
    """A line a value: what it is, and the file and table it was written in."""
    if chosen is msgspec.UNSET:
        return []
    lines = [("profile", chosen.name)]
    for each in chosen.values:
        value = ", ".join(each.value) if isinstance(each.value, list) else str(each.value)
        where = each.path if each.own else "bundled"
        lines.append((f"  {each.key}", f"{value or 'none'}  ({where} [{each.profile}])"))
    return lines


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _needed(package: str, found: str | None) -> bool:
    # The reference of the tests is not needed to run.
    return found is None and package != "compressed-tensors"


def _machine() -> Machine:
    memory = free = 0
    if importlib.util.find_spec("psutil") is not None:
        import psutil

        memory, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(1)
    return Machine(
        system=platform.platform(),
        cpu=_cpu(),
        cores=len(usable) if len(usable) > 1 else os.cpu_count() or 1,
        memory=memory,
        memory_free=free,
        gpus=_gpus(),
        compiler=_compiler(),
    )


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or MISSING


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU, from the driver."""
    if importlib.util.find_spec("pynvml") is None:
        return []
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []  # no driver: most often, no GPU
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
            name = pynvml.nvmlDeviceGetName(handle)
            found.append(f"cuda:{index} {name}, {size(total)}, driver {driver}")
        return found
    except pynvml.NVMLError as error:
        return [f"the driver does not answer: {error}"]
    finally:
        pynvml.nvmlShutdown()


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next(
        (path for name in (named, *COMPILERS) if name and (path := shutil.which(name))), None
    )


def _terminal() -> Terminal:
    columns, rows = shutil.get_terminal_size()
    environment = os.environ
    multiplexer = "tmux" if "TMUX" in environment else "screen" if "STY" in environment else None
    return Terminal(
        stdout_is_terminal=sys.stdout.isatty(),
        size=(columns, rows),
        term=environment.get("TERM"),
        colorterm=environment.get("COLORTERM"),
        no_color="NO_COLOR" in environment,
        multiplexer=multiplexer,
        ssh="SSH_CONNECTION" in environment or "SSH_TTY" in environment,
        encoding=locale.getpreferredencoding(False),
    )


def _places(problems: list[str]) -> list[Place]:
    """Config, state, socket and bundled files; what cannot be made is a problem."""
    places = [("config", user_path().parent), ("own profiles", user_path())]
    own = user_path().parent
    places += [("own themes", own / "themes"), ("own keys", own / "keymap.toml")]
    try:
        paths.check_state_folder()
        places.append(("state", paths.state_folder()))
        places.append(("facts", paths.facts_file()))
        places.append(("logs", paths.state_folder() / "sessions"))
    except (OSError, EngineError) as error:
        problems.append(f"state folder: {error}")
    try:
        places.append(("sockets", paths.socket_file("demo").parent))
    except (OSError, EngineError) as error:
        problems.append(f"socket folder: {error}")
    places.append(("bundled profiles", bundled_path()))
    places.append(("bundled themes", themes_folder()))
    demo = importlib.util.find_spec("engine.demo")
    if demo is not None and demo.origin is not None:
        places.append(("bundled demo", Path(demo.origin).parent / "checkpoint"))
    return [Place(name=name, path=str(path), found=path.exists()) for name, path in places]
