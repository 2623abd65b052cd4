"""Opens a checkpoint in named stages: headers, then model, text and windows.

The layer table is complete once the headers are read, before a model library is imported. Loading
runs on a thread of its own, not on the compute thread.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from engine import protocol as p
from engine.checkpoint import (
    Checkpoint,
    DiskLayer,
    list_layers,
    open_checkpoint,
    remarks,
)
from engine.demo import DEMO_PATH
from engine.errors import CheckpointError, ProfileError, few
from engine.model.config import refuse_not_causal, refuse_other_models
from engine.model.known_models import why_unknown
from engine.model.source import resolve_model
from engine.profiles import load_profile
from engine.service.in_thread import in_thread
from engine.service.jobs import Outcome, Steps
from engine.service.process import is_own_process, without_collecting
from engine.store import keys
from engine.workers.asked import parse_workers
from engine.workspace import Loaded, Opened, Workspace
from engine.workspace.opened import row_bits

if TYPE_CHECKING:
    from engine.model.network import Network
    from engine.texts.corpora import Text
    from engine.texts.windows import Windows


def open_job(workspace: Workspace, source: str, *, model: bool) -> Steps:
    """Read a checkpoint's headers and, with ``model``, load it and cut its text.

    Yields:
        `Stage`, `CheckpointRead`, `LayersListed`, `Notice`, finally `ModelReady`.

    Raises:
        UnreadableError: the checkpoint or the text cannot be read.
        OutOfMemoryError: the model does not fit into memory.
    """
    yield p.Stage("reading headers", 0, 1)
    opened = yield from _open_files(workspace, source, model=model)
    load_s = 0.0
    if model:
        with without_collecting():
            loaded = yield from _load_model(opened)
        load_s = loaded.load_s
    return Outcome(timings={"load_s": load_s})


def _open_files(
    workspace: Workspace, source: str, *, model: bool
) -> Generator[p.AnyEvent | None, None, Opened]:
    """Read the headers, and list the layers; refuse at once what could not be loaded."""
    demo, trusted = source == "demo", workspace.settings.trust_remote_code
    path = DEMO_PATH if demo else resolve_model(source, trust_remote_code=trusted)
    checkpoint = open_checkpoint(path, follow_links=workspace.settings.follow_links)
    file, unknown = checkpoint.config_file, why_unknown(checkpoint.config, trusted=trusted)
    refuse_not_causal(file, checkpoint.config, trusted=trusted)
    if model:
        refuse_other_models(file, checkpoint.config, trusted=trusted)
    rows = list_layers(checkpoint)
    # Hash before any fact is looked up; small files take no time.
    yield p.Stage("hashing weights", 0, 1)
    code = [file.read_bytes() for file in sorted(path.glob("*.py"))] if trusted else []
    opened = Opened(
        workspace=workspace,
        path=path,
        checkpoint=checkpoint,
        rows={row.name: row for row in rows},
        demo=demo,
        loads_model=model,
        other_bytes=_other_bytes(checkpoint, rows),
        code_sha256=hashlib.sha256(b"\0".join(code)).hexdigest() if code else "",
    )
    workspace.add(opened)  # before it is announced: jobs start as soon as layers are listed
    yield opened.read()
    yield opened.listed()
    for sentence in remarks(checkpoint, rows):
        yield p.Notice("warning", sentence)
    if unknown is not None:
        yield p.Notice("warning", f"{file}: {unknown}; until then only its files are read")
    if trusted:
        yield p.Notice("warning", f"code that comes with {checkpoint.name} may run, as you allowed")
    return opened


def _other_bytes(checkpoint: Checkpoint, rows: Sequence[DiskLayer]) -> int:
    """Bytes of the checkpoint outside of layers."""
    in_layers = sum(row_bits(row) // 8 for row in rows if not _tied(row))
    return max(0, checkpoint.bytes - in_layers)


def _tied(row: DiskLayer) -> bool:
    """Whether this is a head that is absent on disk: its tensor is the embedding's."""
    return row.role == "head" and row.parts != (f"{row.name}.weight",)


def _load_model(opened: Opened) -> Generator[p.AnyEvent | None, None, Loaded]:
    """Load the model, and cut the evaluation text into windows."""
    begun = time.perf_counter()
    network = yield from _load_network(opened)
    _divide_threads(opened.settings, network)
    text, windows = yield from _cut_windows(opened, network)
    from engine.measure.evaluation.divergence import MeanWithError
    from engine.model.fold_groups import fold_groups
    from engine.model.inputs import why_not_gathered_of
    from engine.model.selfcheck import check_on_window
    from engine.model.uses import unused

    window = windows.ids[:1].to(network.device)
    fast = network.resumable
    check_on_window(network, window)
    if fast and network.why_not_resumable:
        yield p.Notice("warning", network.why_not_resumable)
    if idle := unused(network, window):
        count = f"{len(idle)} layer{'s' if len(idle) > 1 else ''}"
        yield p.Notice(
            "warning",
            f"the model does not use {count} ({few(idle)}): changing them changes no logit, so "
            "their effect is 0",
        )
    why_not_folded = {
        name: group.why_not for name, group in fold_groups(network).items() if group.why_not
    }
    protocol = p.Protocol(
        text=text.name,
        text_sha256=text.sha256,
        column=text.column,
        documents=text.documents,
        skipped=text.skipped,
        bos=True if opened.settings.bos else UNSET,
        streamed=True if network.streamed else UNSET,
        tokens=windows.tokens,
        seq_len=windows.seq_len,
        stride=windows.targets,
        windows=windows.count,
        dtype=str(network.dtype).removeprefix("torch."),
        device=str(network.device),
        seed=opened.settings.seed,
        draws=opened.settings.draws,
    )
    evaluation = keys.evaluation(opened.files, protocol, windows.sha256, network.unlike_names())
    loaded = Loaded(opened, network, windows, protocol, evaluation)
    network.should_stop = loaded.should_stop
    opened.workspace.add(loaded)  # from now on it is checked to be at rest after every step
    if (listed := _renamed_layers(opened, network)) is not None:
        yield listed
    loaded.load_s = time.perf_counter() - begun
    device_reason, dtype_reason, *_ = network.notes
    yield p.ModelReady(
        device=protocol.device,
        device_reason=device_reason,
        dtype=protocol.dtype,
        dtype_reason=dtype_reason,
        blocks=len(network.blocks),
        resumable=network.resumable,
        why_not_resumable=network.why_not_resumable or "",
        tied=network.tied,
        protocol=protocol,
        load_s=loaded.load_s,
        interval_factor=MeanWithError(0.0, 1.0, windows.count).half(),
        memory=sum(t.numel() * t.element_size() for t in network.model.parameters()),
        reading_s=network.reading_s,
        why_not_folded=why_not_folded,
        why_not_gathered=why_not_gathered_of(network),
    )
    return loaded


def _divide_threads(settings: p.Settings, network: Network) -> None:
    """Leave workers on this processor their share of it."""
    import torch

    processes = parse_workers(settings.workers).processes
    if network.device.type == "cpu" and processes > 1 and is_own_process():
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def _load_network(opened: Opened) -> Generator[p.AnyEvent | None, None, Network]:
    """Load the model on a thread of its own, with notices about anything special."""
    yield p.Stage("importing transformers", 0, 1)
    from engine.model.load import load_network

    settings = opened.settings

    def load(report: Callable[[p.Stage], None]) -> Network:
        return load_network(
            opened.path,
            device=settings.device,
            dtype=settings.dtype,
            budget=settings.memory_budget,
            trust_remote_code=settings.trust_remote_code,
            follow_links=settings.follow_links,
            on_stage=lambda stage: report(p.Stage(*stage)),
        )

    network = yield from in_thread("loading", load, wait=False)
    _, _, *notes = network.notes
    for note in notes:
        yield p.Notice("info", note)
    for sentence in network.zeroed:
        yield p.Notice("error", sentence)
    if network.why_not_resumable:
        yield p.Notice("warning", network.why_not_resumable)
    return network


def _cut_windows(
    opened: Opened, network: Network
) -> Generator[p.AnyEvent | None, None, tuple[Text, Windows]]:
    """Read the evaluation text, and cut it into windows."""
    import torch

    from engine.model.load import load_tokenizer
    from engine.model.quiet import quiet
    from engine.texts.bos import adds_bos, bos_token, probe, warning
    from engine.texts.corpora import evaluation_text, first_tokens
    from engine.texts.windows import cut, shuffled

    settings = opened.settings
    yield p.Stage("reading text", 0, 1)
    notices: list[str] = []
    tokenizer = load_tokenizer(
        opened.path,
        trust_remote_code=settings.trust_remote_code,
        follow_links=settings.follow_links,
    )
    text = evaluation_text(
        settings.text, demo=opened.demo, notify=notices.append, tokenizer=tokenizer
    )
    for sentence in notices:
        yield p.Notice("warning", sentence)
    yield p.Stage("cutting windows", 0, 1)
    seq_len, why = _window_length(network.config, settings)
    if why:
        yield p.Notice("info", why)
    with quiet():  # the tokenizer warns of texts longer than the model's window; we cut them
        ids = first_tokens(
            tokenizer,
            text.content,
            max(settings.tokens, seq_len),
            special_tokens=text.special_tokens and not settings.bos,
        )
    bos = bos_token(tokenizer) if settings.bos else None
    windows = cut(torch.tensor(ids), seq_len, settings.tokens, settings.stride, bos)
    windows = shuffled(windows, settings.seed)
    vocabulary = network.config.get_text_config().vocab_size
    if int(windows.ids.max()) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer produces token {int(windows.ids.max())}, but the model has only "
            f"{vocabulary} tokens: tokenizer and model do not match"
        )
    tried = probe(ids) if bos is None and adds_bos(tokenizer) else ()
    if tried:
        begun = _with_and_without(network, tried, tokenizer.bos_token_id)
        if sentence := warning(*begun):
            yield p.Notice("warning", sentence)
    if windows.tokens < settings.tokens - settings.tokens % seq_len:
        yield p.Notice(
            "info", f"the text has only {windows.tokens} tokens in windows of {seq_len}, "
            f"instead of {settings.tokens}"
        )  # fmt: skip
    if windows.tokens > settings.tokens:
        yield p.Notice(
            "info", f"using one window of {seq_len} tokens, instead of {settings.tokens} tokens"
        )
    return text, windows


def _with_and_without(network: Network, ids: Sequence[int], bos: int) -> tuple[float, float]:
    """NLL of the second half of a window, in nats per token, without and with BOS before it."""
    import torch

    from engine.model.lanes import Lane

    windows = [torch.tensor([row], device=network.device) for row in ([*ids], [bos, *ids])]
    late = len(ids) // 2
    if network.streamed:
        lanes = [Lane(network, window, -1, None) for window in windows]
        for stretch in network.stretches(-1, len(network.blocks)):
            with network.at_hand(stretch):
                for lane in lanes:
                    lane.advance(stretch.stop)
        with network.at_hand([len(network.blocks)]):  # the head
            whole = [network.logits(lane.ids, lane.reached(), slice(None)) for lane in lanes]
    else:
        whole = [network.run(window, None) for window in windows]
    found = [
        float(torch.nn.functional.cross_entropy(z[0, -late - 1 : -1].float(), ids[0, -late:]))
        for z, ids in zip(whole, windows, strict=True)
    ]
    return found[0], found[1]


def _window_length(config: Any, settings: p.Settings) -> tuple[int, str]:
    """Tokens in a window, and a sentence if the model takes fewer than were asked for."""
    asked = settings.seq_len
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if isinstance(longest, int) and 2 <= longest < asked:
        said = f"windows of {longest} tokens, the longest that the model takes"
        return longest, said + (f", instead of {asked}" if _by_hand(settings) else "")
    return asked, ""


def _by_hand(settings: p.Settings) -> bool:
    """Whether the length of windows is another than the profile's."""
    try:
        return settings.seq_len != load_profile(settings.profile).seq_len
    except ProfileError:
        return True


def _renamed_layers(opened: Opened, network: Network) -> p.LayersListed | None:
    """A new listing if the model's layers differ from the files' rows; else None."""
    if list(network.layers) == list(opened.rows):
        return None
    rows: dict[str, DiskLayer] = {}
    checkpoint = opened.checkpoint
    for name, layer in network.layers.items():
        row = opened.rows.get(name)
        if row is None:
            dtype = (
                checkpoint.tensors[layer.disk[0]].dtype
                if layer.disk and layer.disk[0] in checkpoint.tensors
                else checkpoint.dtype
            )
            row = DiskLayer(
                name, layer.kind, layer.block, layer.shape, dtype, layer.disk, False, layer.role
            )
        rows[name] = row
    opened.rows = rows
    opened.other_bytes = _other_bytes(checkpoint, list(rows.values()))
    return opened.listed()
