"""Opening a checkpoint: headers, then model, text and windows, in named stages.

The table of layers stands as soon as the headers are read, before a model library is imported.
Loading runs on a thread of its own, off the compute thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from engine import protocol as p
from engine.checkpoint import (
    Checkpoint,
    DiskLayer,
    fused_groups,
    list_layers,
    open_checkpoint,
)
from engine.demo import DEMO_PATH
from engine.errors import EngineError
from engine.model.source import resolve_model
from engine.service.in_thread import in_thread
from engine.service.jobs import Outcome, Steps
from engine.service.process import without_collecting
from engine.session.artefact import bits_as_stored
from engine.workspace import Workspace

if TYPE_CHECKING:
    from engine.model.network import Network


def open_job(workspace: Workspace, source: str, *, model: bool) -> Steps:
    """Read a checkpoint's headers and, with ``model``, load it and cut its text.

    Yields:
        `Stage`, `CheckpointRead`, `LayersListed`, `Notice`, at last `ModelReady`.

    Raises:
        UnreadableError: the checkpoint or the text cannot be read.
        OutOfMemoryError: it does not fit.
    """
    yield p.Stage("reading headers", 0, 1)
    workspace.demo = source == "demo"
    settings = workspace.settings
    workspace.path = (
        DEMO_PATH
        if workspace.demo
        else resolve_model(source, trust_remote_code=settings.trust_remote_code)
    )
    checkpoint = open_checkpoint(workspace.path)
    rows = list_layers(checkpoint)
    # Hashing comes before any fact is asked for; small files take no time.
    yield p.Stage("hashing weights", 0, 1)
    fingerprint = checkpoint.fingerprint
    workspace.checkpoint = checkpoint
    workspace.rows = {row.name: row for row in rows}
    workspace.scale_dtype = "bfloat16" if checkpoint.dtype == "bfloat16" else "float16"
    yield p.CheckpointRead(
        name="demo" if workspace.demo else checkpoint.name,
        path=str(workspace.path),
        architecture=_architecture(checkpoint),
        parameters=checkpoint.parameters,
        bytes=checkpoint.bytes,
        dtype=checkpoint.dtype,
        fingerprint=fingerprint,
    )
    yield _listed(workspace, checkpoint, rows)
    if settings.trust_remote_code:
        code = [file.read_bytes() for file in sorted(workspace.path.glob("*.py"))]
        workspace.code_sha256 = hashlib.sha256(b"\0".join(code)).hexdigest() if code else ""
        yield p.Notice("warning", f"code that comes with {checkpoint.name} may run: asked for")
    if model:
        with without_collecting():
            yield from _load(workspace, checkpoint)
    return Outcome(timings={"load_s": workspace.load_s})


def _architecture(checkpoint: Checkpoint) -> str:
    names = checkpoint.config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return str(checkpoint.config.get("model_type", "?"))


def _listed(workspace: Workspace, checkpoint: Checkpoint, rows: list[DiskLayer]) -> p.LayersListed:
    in_layers = sum(bits_as_stored(row.shape, row.dtype) // 8 for row in rows if not _tied(row))
    workspace.other_bytes = max(0, checkpoint.bytes - in_layers)
    names = [row.name for row in rows]
    blocks = [-1 if row.block is None else row.block for row in rows]
    roles = [row.role for row in rows]
    return p.LayersListed(
        names=names,
        kinds=[row.kind for row in rows],
        blocks=blocks,
        roles=roles,
        shapes=[row.shape for row in rows],
        dtypes=[row.dtype for row in rows],
        other_bytes=workspace.other_bytes,
        groups=fused_groups(names, blocks, roles),
    )


def _tied(row: DiskLayer) -> bool:
    """A head that is absent on disk: its tensor is the embedding's."""
    return row.role == "head" and row.parts != (f"{row.name}.weight",)


def _load(workspace: Workspace, checkpoint: Checkpoint) -> Generator[p.AnyEvent | None, None, None]:
    begun = time.perf_counter()
    settings, path = workspace.settings, workspace.path
    assert path is not None
    yield p.Stage("importing transformers", 0, 1)
    from engine.model.load import load_network, load_tokenizer
    from engine.model.quiet import quiet

    def load(tell: Callable[[p.Stage], None]) -> Network:
        return load_network(
            path,
            device=settings.device,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            on_stage=lambda name, done, total: tell(p.Stage(name, done, total)),
        )

    network = yield from in_thread("loading", load, wait=False)
    import torch

    from engine.measure.evaluation.divergence import MeanWithError, cut, shuffled
    from engine.measure.evaluation.reference import Reference
    from engine.model.folding import fold_groups
    from engine.model.memory import memory_free

    device_reason, dtype_reason, *notes = network.notes
    for note in notes:
        yield p.Notice("info", note)
    for sentence in network.zeroed:
        yield p.Notice("error", sentence)
    if network.why_not_resumable:
        yield p.Notice("warning", network.why_not_resumable)

    yield p.Stage("reading text", 0, 1)
    notices: list[str] = []
    from engine.texts.corpora import evaluation_text, first_tokens

    text = evaluation_text(settings.text, demo=workspace.demo, tell=notices.append)
    for sentence in notices:
        yield p.Notice("warning", sentence)
    yield p.Stage("cutting windows", 0, 1)
    tokenizer = load_tokenizer(path, trust_remote_code=settings.trust_remote_code)
    seq_len, why = _window(network.config, settings.seq_len)
    if why:
        yield p.Notice("info", why)
    with quiet():  # a text longer than the model's window is what windows are cut from
        ids = first_tokens(tokenizer, text.content, max(settings.tokens, seq_len))
    windows = cut(torch.tensor(ids), seq_len, settings.tokens, settings.stride)
    windows = shuffled(windows, settings.seed)
    vocabulary = network.config.get_text_config().vocab_size
    if int(windows.ids.max()) >= vocabulary:
        raise EngineError(
            f"the tokenizer gives token {int(windows.ids.max())} and the model has {vocabulary}: "
            "tokenizer and model do not belong together"
        )
    if windows.tokens < settings.tokens - settings.tokens % seq_len:
        yield p.Notice(
            "info", f"the text gives {windows.tokens} tokens in windows of {seq_len}, "
            f"of {settings.tokens} asked for"
        )  # fmt: skip
    if windows.tokens > settings.tokens:
        yield p.Notice(
            "info", f"one window of {seq_len} tokens, not the {settings.tokens} asked for"
        )
    # Of a budget that is given, the other half is for what calibrates and estimates.
    budget = (settings.memory_budget or memory_free(network.device)) // 2
    why_not_folded = {
        name: group.why_not for name, group in fold_groups(network).items() if group.why_not
    }
    network.should_stop = workspace.should_stop
    workspace.network = network  # from now on it is to be at rest between any job's steps
    workspace.reference = Reference(network, windows, settings.batch_tokens, budget)
    workspace.protocol = p.Protocol(
        text=text.name,
        text_sha256=text.sha256,
        tokens=windows.tokens,
        seq_len=windows.seq_len,
        stride=windows.targets,
        windows=windows.count,
        dtype=str(network.dtype).removeprefix("torch."),
        device=str(network.device),
        seed=settings.seed,
        draws=settings.draws,
    )
    workspace.windows_sha256 = hashlib.sha256(windows.ids.numpy().tobytes()).hexdigest()
    if (listed := _corrected(workspace)) is not None:
        yield listed
    workspace.load_s = time.perf_counter() - begun
    yield p.ModelReady(
        device=str(network.device),
        device_reason=device_reason,
        dtype=workspace.protocol.dtype,
        dtype_reason=dtype_reason,
        blocks=len(network.blocks),
        resumable=network.resumable,
        why_not_resumable=network.why_not_resumable or "",
        tied=network.tied,
        protocol=workspace.protocol,
        load_s=workspace.load_s,
        interval_factor=MeanWithError(0.0, 1.0, windows.count).half(),
        memory=sum(t.numel() * t.element_size() for t in network.model.parameters()),
        why_not_folded=why_not_folded,
    )


def _window(config: Any, asked: int) -> tuple[int, str]:
    """Tokens in a window, and a sentence where the model takes fewer than were asked for."""
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 2 <= longest < asked:
        return longest, f"windows of {longest} tokens: the model takes no more ({asked} asked for)"
    return asked, ""


def _corrected(workspace: Workspace) -> p.LayersListed | None:
    """The table again where the model's layers are not the files' rows; None if they are."""
    network, checkpoint = workspace.network, workspace.checkpoint
    assert network is not None
    assert checkpoint is not None
    if list(network.layers) == list(workspace.rows):
        return None
    rows: list[DiskLayer] = []
    for name, layer in network.layers.items():
        row = workspace.rows.get(name)
        if row is None:
            dtype = (
                checkpoint.tensors[layer.disk[0]].dtype
                if layer.disk and layer.disk[0] in checkpoint.tensors
                else checkpoint.dtype
            )
            row = DiskLayer(
                name, layer.kind, layer.block, layer.shape, dtype, layer.disk, False, layer.role
            )
        rows.append(row)
    workspace.rows = {row.name: workspace.rows.get(row.name, row) for row in rows}
    return _listed(workspace, checkpoint, rows)
