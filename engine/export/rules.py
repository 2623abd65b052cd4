"""What several targets say in the same way: exact names, methods, groups, roles."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.export.target import Weight
from engine.formats.grammar import Format, Method, why_not_built
from engine.formats.storage import why_not_held

UNTIES = "the head was tied to the embedding and gets a weight of its own"
"""`Target.unties` of targets whose files can have both."""
FUSED = "vLLM and SGLang store fused layers as one tensor and cannot serve several formats"
"""`Target.mixed` of targets that these engines read."""


def exactly(name: str) -> str:
    """A regular expression that matches a name and no other, for ``match`` and for ``search``."""
    return f"^{re.escape(name)}$"


def glob_exactly(name: str) -> str:
    """A pattern of ``fnmatch`` that matches a name and no other."""
    return re.sub(r"([*?[])", r"[\1]", name)


def method_of(fmt: Format, name: str) -> Method | None:
    """A method of a format."""
    return next((method for method in fmt.methods if method.name == name), None)


def why_no_method(fmt: Format, tool: str, allowed: Mapping[str, Collection[str]]) -> str | None:
    """Why a tool cannot apply a format's methods; None if it can.

    Args:
        fmt: the format.
        tool: its name.
        allowed: the options of each method that it has.
    """
    for method in fmt.methods:
        if method.name not in allowed:
            return f"{tool} has no '+{method.name}', or does it in a way of its own"
        for option, _ in method.options:
            if option not in allowed[method.name]:
                return f"{tool} has no ':{option}' of '+{method.name}'"
    return None


def why_no_scales(
    fmt: Format,
    shape: Sequence[int],
    tool: str,
    *,
    groups: Collection[int] = (),
    channel: bool = True,
    tensor: bool = False,
) -> str | None:
    """Why a tool cannot store the scales of an integer format; None if it can.

    Args:
        fmt: the format.
        shape: of the weight.
        tool: its name.
        groups: the group sizes that it has; empty for all. They must divide the row.
        channel: whether it has scales per channel.
        tensor: whether it has one scale for a tensor.
    """
    if fmt.strategy == "channel" and not channel:
        return f"{tool} has no scales per channel"
    if fmt.strategy == "tensor" and not tensor:
        return f"{tool} has no scale for a whole tensor"
    if fmt.strategy != "group" or fmt.group_size is None:
        return None
    if groups and fmt.group_size not in groups:
        return f"{tool} has groups of {in_words(groups)}, not of {fmt.group_size}"
    if shape[-1] % fmt.group_size:
        return f"{tool} needs groups that divide the row, and {shape[-1]} is not a multiple of " + (
            str(fmt.group_size)
        )
    return None


def why_not_at_all(fmt: Format, shape: Sequence[int]) -> str | None:
    """Why no weight of this shape can have the format, or it is not built; None if it can."""
    return why_not_held(fmt, shape) or why_not_built(fmt)


def why_no_role(weight: Weight, tool: str, roles: Collection[str]) -> str | None:
    """Why a tool quantises no weights of this role; None if it does."""
    if weight.role in roles:
        return None
    said = {
        "embedding": "embeddings",
        "experts": "experts that are one tensor in the model",
        "conv1d": "transposed Conv1D modules",
        "head": "heads",
        "linear": "linear modules",
    }
    return f"{tool} quantises no {said[weight.role]}"


def in_words(values: Collection[int]) -> str:
    """``32, 64 and 128``."""
    texts = [str(value) for value in sorted(values)]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def as_json(document: Any) -> str:
    """A JSON document as a file's text; its keys keep their order, which some tools match by."""
    return json.dumps(document, indent=2) + "\n"


def as_yaml(document: Any, comment: str = "") -> str:
    """A YAML document as a file's text, every string so that it is read back as itself."""
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False, width=1000, allow_unicode=False)
    return f"# {comment}\n{text}" if comment else text
