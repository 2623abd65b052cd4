"""Loads an export as its user will: without values before it is written, whole before it is done.

Some models cannot load a checkpoint that is right: their loader touches the weight of a quantised
module while it starts, merges experts that are stored as codes with others, or builds other modules
where a checkpoint is quantised. Some of these failures are a warning and random weights. So plain
transformers loads the folder in a process of its own (it changes global settings), runs a few
tokens, and every quantised weight is compared with the one that was measured. What names and shapes
alone show is found before anything is written, from tensors without values.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from engine.errors import EngineError, InfeasibleError
from engine.export.refusal import some_of
from engine.workers import child

if TYPE_CHECKING:
    from torch import Tensor

    from engine.export.shards import Slot

TOKENS = 8
WAIT = 0.1
"""Seconds between two looks at whether to go on."""


class NotLoadable(InfeasibleError):
    """transformers does not load a checkpoint as it was measured."""

    def __init__(self, why: str, *, written: bool = True) -> None:
        super().__init__(
            f"transformers does not load this recipe's checkpoint: {why}; "
            f"{'nothing is left of it' if written else 'nothing was written'}. "
            "Keep these layers, or write it for another program without loading it (--no-check)"
        )


class NotReadBack(InfeasibleError):
    """What was written is not read as it was measured."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; nothing is left of it. Please report this with the recipe")


class _Planned(msgspec.Struct, frozen=True, tag="planned"):
    folder: str
    """Holds ``config.json``, and code if there is any."""
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """Dtypes and shapes."""
    shapes: Mapping[str, tuple[int, ...]]
    """Values of the tensors that are read as the shape of a packed weight."""
    trust_remote_code: bool


class _Question(msgspec.Struct, frozen=True, tag="written"):
    folder: str
    digests: Mapping[str, str]
    """Of quantised weights, by module."""
    trust_remote_code: bool
    experts: Mapping[str, Mapping[int, str]] = {}
    """Of quantised experts, by parameter and number."""


class _Answer(msgspec.Struct, frozen=True):
    problem: str = ""


def digest(weight: Tensor) -> str:
    """A hash of a weight's shape, dtype and values; -0 is 0."""
    import torch

    values = (weight.detach().cpu().contiguous() + 0).view(torch.uint8).numpy()
    found = hashlib.sha256(f"{weight.dtype} {tuple(weight.shape)}".encode())
    found.update(values.data)
    return found.hexdigest()


class _Running(NamedTuple):
    """The other process."""

    process: subprocess.Popen[bytes]
    line: Connection
    """Takes questions and gives answers; what libraries print is neither."""
    said: IO[bytes]
    """What it prints."""


class Loader:
    """Plain transformers in a process of its own, which starts with the first question."""

    def __init__(self) -> None:
        self._running: _Running | None = None

    def close(self) -> None:
        """End the process."""
        if self._running is not None:
            process, line, said = self._running
            process.kill()
            process.wait()
            line.close()
            said.close()
            self._running = None

    def check_loads(
        self,
        folder: Path,
        digests: Mapping[str, str],
        go_on: Callable[[], None],
        *,
        experts: Mapping[str, Mapping[int, str]] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Load a checkpoint and compare its quantised weights.

        Args:
            folder: the checkpoint, complete.
            digests: `digest` of each quantised weight in the checkpoint's dtype, by module.
            go_on: called now and then; raises to give up, after which the loader is to be closed.
            experts: `digest` of each quantised expert, by parameter and number.
            trust_remote_code: whether the checkpoint's Python code may run.

        Raises:
            NotLoadable: it does not load, or other weights are read than were measured.
            EngineError: the other process does not start.
        """
        question = _Question(str(folder), digests, trust_remote_code, experts or {})
        if problem := self._asked(question, go_on):
            raise NotLoadable(problem)

    def check_would_load(
        self,
        folder: Path,
        slots: Mapping[str, Slot],
        shapes: Mapping[str, tuple[int, ...]],
        go_on: Callable[[], None],
        *,
        trust_remote_code: bool = False,
    ) -> None:
        """Load what is planned, from names, dtypes and shapes alone.

        Args:
            folder: holds ``config.json``, and code if there is any.
            slots: the tensors, by name.
            shapes: values of those that hold the shape of a packed weight.
            go_on: called now and then; raises to give up, after which the loader is to be closed.
            trust_remote_code: whether the checkpoint's Python code may run.

        Raises:
            NotLoadable: it would not load.
            EngineError: the other process does not start.
        """
        tensors = {
            name: (str(slot.dtype).removeprefix("torch."), tuple(slot.shape))
            for name, slot in slots.items()
        }
        question = _Planned(str(folder), tensors, shapes, trust_remote_code)
        if problem := self._asked(question, go_on):
            raise NotLoadable(problem, written=False)

    def _asked(self, question: _Planned | _Question, go_on: Callable[[], None]) -> str:
        """The problem that the other process finds; empty if there is none."""
        if self._running is not None and self._running.process.poll() is not None:
            self.close()  # it ended since the last question, which has nothing to do with this one
        if self._running is None:
            self._running = _start()
        line, encoded = self._running.line, msgspec.json.encode(question)
        try:
            line.send_bytes(encoded)
            while not line.poll(WAIT):
                go_on()
            return msgspec.json.decode(line.recv_bytes(), type=_Answer).problem
        except (EOFError, ConnectionError):
            why = _why_it_ended(self._running)
            self.close()
            return why


def _start() -> _Running:
    ours, theirs = socket.socketpair()
    said: IO[bytes] = TemporaryFile(prefix="qtui-")  # noqa: SIM115 - as long as the process
    with theirs:
        try:
            process = child.started(
                ["engine.export.load_check", str(theirs.fileno())],
                theirs, said, {**os.environ, "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        except OSError as error:
            ours.close()
            said.close()
            raise EngineError(
                f"the process that loads the export to check it does not start ({sys.executable}: "
                f"{error.strerror or error}); leave the check out with --no-check"
            ) from error
    return _Running(process, Connection(ours.detach()), said)


def _why_it_ended(running: _Running) -> str:
    """Why the process ended instead of answering."""
    try:
        code = running.process.wait(child.END_SECONDS)
    except subprocess.TimeoutExpired:
        return "the process that loads it hung up without an answer"
    words = child.last_words(running.said)
    if code >= 0:
        return words.removeprefix(": ") or f"exit code {code}"
    name = signal.strsignal(-code) or f"signal {-code}"
    # Nothing is said before that one, which the system sends when memory runs out.
    more = "" if -code == signal.SIGKILL else words
    return f"the process that loads it was ended ({name}){more}"


def problem_of_plan(question: _Planned) -> str:
    """Why a checkpoint would not be read whatever its values; empty if nothing shows."""
    import torch
    from transformers import AutoConfig

    from engine.model.config import model_class
    from engine.model.quiet import quiet
    from engine.model.transformers_internals import reading_no_values

    trusted = question.trust_remote_code
    tensors = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (dtype, shape) in question.tensors.items()
    }
    tensors |= {name: torch.tensor(shape) for name, shape in question.shapes.items()}
    try:
        with quiet(), reading_no_values():
            whole = AutoConfig.from_pretrained(question.folder, trust_remote_code=trusted)
            found, config = model_class(Path(question.folder), whole, trust_remote_code=trusted)
            config.quantization_config = getattr(whole, "quantization_config", None)
            _model, report = found.from_pretrained(
                None, config=config, state_dict=tensors, dtype="auto", output_loading_info=True
            )
    except Exception as error:  # noqa: BLE001  (whatever it is, this checkpoint is not loaded)
        return _told(error)
    return _missing(report)


def problem_of(question: _Question) -> str:
    """Why a checkpoint is not read as it was measured; empty if it is."""
    from transformers import AutoConfig

    from engine.model.config import auto_class
    from engine.model.quiet import quiet

    try:
        with quiet():
            config = AutoConfig.from_pretrained(
                question.folder, trust_remote_code=question.trust_remote_code
            )
            model, report = auto_class(config).from_pretrained(
                question.folder,
                dtype="auto",
                output_loading_info=True,
                local_files_only=True,
                trust_remote_code=question.trust_remote_code,
            )
        if problem := _missing(report):
            return problem
        _run(model)
    except Exception as error:  # noqa: BLE001  (whatever it is, this checkpoint is not loaded)
        return _told(error)
    wrong = [name for name, wanted in question.digests.items() if _read(model, name) != wanted]
    wrong += [
        f"expert {expert} of {name}"
        for name, wanted in question.experts.items()
        for expert, each in wanted.items()
        if _read_expert(model, name, expert) != each
    ]
    return f"it reads other weights than were measured for {some_of(wrong)}" if wrong else ""


def _missing(report: Mapping[str, Any]) -> str:
    missing = sorted(report["missing_keys"])
    return f"it reads {some_of(missing)} from no tensor of the file" if missing else ""


def _told(error: Exception) -> str:
    said = next((line for line in str(error).splitlines() if line.strip()), "").strip()
    if "CONVERSION" in said:  # where it says what failed is a table on the terminal
        return "it cannot merge weights that are stored apart where others are stored as codes"
    if isinstance(error, AttributeError) and "'weight'" in said:
        return f"it reads the weight of a module that is stored as codes while it starts ({said})"
    return f"{type(error).__name__}: {said}"


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


def _read_expert(model: Any, name: str, expert: int) -> str:
    try:
        return digest(model.get_parameter(name)[expert])
    except (AttributeError, IndexError):
        return ""


def main() -> None:
    """Answer questions until nobody asks any more."""
    line = Connection(int(sys.argv[1]))
    while True:
        try:
            given = line.recv_bytes()
        except EOFError:
            return
        question: _Planned | _Question = msgspec.json.decode(given, type=_Planned | _Question)
        if isinstance(question, _Planned):
            problem = problem_of_plan(question)
        else:
            problem = problem_of(question)
        line.send_bytes(msgspec.json.encode(_Answer(problem)))


if __name__ == "__main__":
    main()
