"""The runtimes that a finished checkpoint can be timed in: the one list of them.

A runtime is there in the form of a package or of a program; each form names its driver in
`engine.runtimes.drivers`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["folder", "gguf"]
"""A folder in the Hugging Face layout, or a GGUF file."""


class Form(NamedTuple):
    """One way in which a runtime may be installed."""

    name: str
    """Of the package that is imported, or of the program."""
    driver: str
    """Module in `engine.runtimes.drivers`."""
    install: str
    """What to do to have it."""
    program: bool = False
    """Whether it is a program on the ``PATH``."""


class Runtime(NamedTuple):
    """A program or library that runs finished checkpoints."""

    name: str
    """As it is named on the command line."""
    reads: Kind
    """What it runs as it is stored."""
    forms: tuple[Form, ...]
    """The first one that is there is used."""
    instead: str
    """What to do with the other kind of checkpoint."""


RUNTIMES = (
    Runtime(
        "transformers",
        "folder",
        (Form("transformers", "with_transformers", "pip install transformers torch"),),
        "transformers dequantises a GGUF file before it runs it: use --runtime llama.cpp",
    ),
    Runtime(
        "llama.cpp",
        "gguf",
        (
            Form("llama_cpp", "with_llama_cpp", "pip install llama-cpp-python"),
            Form("cyllama", "with_cyllama", "pip install cyllama"),
            Form("llama-bench", "with_llama_bench", "put llama-bench on the PATH", program=True),
        ),
        "llama.cpp runs GGUF files: write one with `qtui export --to gguf`",
    ),
    Runtime(
        "vllm",
        "folder",
        (Form("vllm", "with_vllm", "pip install vllm"),),
        "use --runtime llama.cpp for a GGUF file",
    ),
)


def runtime_named(name: str) -> Runtime | None:
    """The runtime with this name, or None."""
    return next((each for each in RUNTIMES if each.name == name), None)


def usual(kind: Kind) -> Runtime:
    """The runtime that a checkpoint is timed in where none was named."""
    return next(each for each in RUNTIMES if each.reads == kind)
