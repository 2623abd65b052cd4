"""What a trait is, the table of them, and folders to begin from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Command = Literal["triage", "eval"]


@dataclass(frozen=True)
class Trait:
    """One thing that is wrong with a checkpoint."""

    name: str
    build: Callable[[Path], None]
    """Gives a sound folder the trait."""
    says: tuple[str, ...]
    """Words of the sentence that refuses it; none if it is harmless."""
    command: Command = "triage"
    """The command that meets it first."""
    model: str = ""
    """The file in the folder that is given to it, if not the folder."""
    told: str = ""
    """A pattern that the sentence matches."""
    prints: str = ""
    """What a harmless one makes the command print."""

    @property
    def harmless(self) -> bool:
        """Whether the checkpoint opens all the same."""
        return not self.says and not self.told


TRAITS: dict[str, Trait] = {}

Build = TypeVar("Build", bound=Callable[[Path], None])


def trait(
    name: str,
    *says: str,
    command: Command = "triage",
    model: str = "",
    told: str = "",
    prints: str = "",
) -> Callable[[Build], Build]:
    """Register the builder of a trait; without words to be said it is harmless."""

    def register(build: Build) -> Build:
        assert name not in TRAITS, name
        TRAITS[name] = Trait(name, build, says, command, model, told, prints)
        return build

    return register


def weights(folder: Path) -> Path:
    """The one weight file of a folder."""
    return folder / "model.safetensors"


def parts(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The header of the weight file, and the bytes after it."""
    content = weights(folder).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(folder: Path, header: object, data: bytes, length: int | None = None) -> None:
    """Write the weight file with a header, true or not; as bytes it is taken as it is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    weights(folder).write_bytes(size.to_bytes(8, "little") + text + data)


def change_config(folder: Path, **given: object) -> None:
    """Set entries of config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **given}))


def add_tensor(folder: Path, name: str, dtype: str, shape: list[int], content: bytes) -> None:
    """Put a further tensor behind the others of the weight file."""
    header, data = parts(folder)
    header[name] = {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [len(data), len(data) + len(content)],
    }
    write(folder, header, data + content)
