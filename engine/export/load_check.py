"""Loads an export as its user will, before it counts as done.

Some models cannot load a checkpoint that is right: their loader touches the weight of a quantised
module while it starts, merges experts that are stored as codes with others, or builds other modules
where a checkpoint is quantised. Some of these failures are a warning and random weights. So plain
transformers loads the folder in a process of its own (it changes global settings), runs a few
tokens, and every quantised weight is compared with the one that was measured.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.errors import InfeasibleError
from engine.export.writer import some_of

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = 8
WAIT = 0.1
"""Seconds between two looks at whether to go on."""


class NotLoadable(InfeasibleError):
    """transformers does not load what was written as it was measured."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"transformers does not load this recipe's checkpoint: {why}; nothing is left of it. "
            "Keep these layers, or write it for another program without loading it (--no-check)"
        )


class _Question(msgspec.Struct, frozen=True):
    folder: str
    digests: Mapping[str, str]
    """Of quantised weights, by module."""
    trust_remote_code: bool


class _Answer(msgspec.Struct, frozen=True):
    problem: str = ""


def digest(weight: Tensor) -> str:
    """A hash of a weight's shape, dtype and values; -0 is 0."""
    import torch

    values = (weight.detach().cpu().contiguous() + 0).view(torch.uint8).numpy()
    found = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    found.update(values.data)
    return found.hexdigest()


def check_loads(
    folder: Path,
    digests: Mapping[str, str],
    go_on: Callable[[], None],
    *,
    trust_remote_code: bool = False,
) -> None:
    """Load a checkpoint in another process and compare its quantised weights.

    Args:
        folder: the checkpoint, complete.
        digests: `digest` of each quantised weight in the checkpoint's dtype, by module.
        go_on: called now and then; raises to give up.
        trust_remote_code: whether the checkpoint's Python code may run.

    Raises:
        NotLoadable: it does not load, or other weights are read than were measured.
    """
    question = _Question(str(folder), digests, trust_remote_code)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "engine.export.load_check"], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    given: bytes | None = msgspec.json.encode(question)
    try:
        while True:
            try:
                said, complaint = process.communicate(given, timeout=WAIT)
                break
            except subprocess.TimeoutExpired:
                given = None
                go_on()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    try:
        answer = msgspec.json.decode(said, type=_Answer)
    except msgspec.DecodeError:
        lines = complaint.decode(errors="replace").strip().splitlines()
        answer = _Answer(lines[-1] if lines else f"exit code {process.returncode}")
    if answer.problem:
        raise NotLoadable(answer.problem)


def problem_of(question: _Question) -> str:
    """Why a checkpoint is not read as it was measured; empty if it is."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

    from engine.model.quiet import quiet
    from engine.model.transformers_internals import causal_classes, multimodal_classes

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                question.folder, trust_remote_code=question.trust_remote_code
            )
            other = type(config) in multimodal_classes() and type(config) not in causal_classes()
            auto: Any = AutoModelForMultimodalLM if other else AutoModelForCausalLM
            model, found = auto.from_pretrained(
                question.folder,
                dtype="auto",
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=question.trust_remote_code,
            )
        if missing := sorted(found["missing_keys"]):
            return f"it reads {some_of(missing)} from no tensor of the file"
        _run(model)
    except Exception as error:  # noqa: BLE001  (whatever it is, this checkpoint is not loaded)
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        if "CONVERSION" in said:  # where it says what failed is a table on the terminal
            return "it cannot merge plain experts where other layers are stored as codes"
        return f"{type(error).__name__}: {said.strip()}"
    wrong = [name for name, wanted in question.digests.items() if _read(model, name) != wanted]
    return f"it reads other weights than were measured for {some_of(wrong)}" if wrong else ""


def _run(model: Any) -> None:
    """A forward of a few tokens, which unpacks the codes."""
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(TOKENS) % vocabulary)[None]
    with torch.no_grad():
        model.eval()(input_ids=ids, use_cache=False)


def _read(model: Any, name: str) -> str:
    try:
        return digest(model.get_submodule(name).weight)
    except AttributeError:
        return ""


def main() -> None:
    """Answer the question on standard input."""
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=_Question)
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    os.write(out, msgspec.json.encode(_Answer(problem_of(question))))


if __name__ == "__main__":
    main()
