"""An engine that replays: a `Link` fed by the test, and events as a small Llama would give them."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Iterator

import msgspec

from engine import protocol as p
from engine.client import EngineGoneError
from engine.profiles import load_profile
from engine.session import Session, apply, decode_session, encode_session

BLOCKS, HIDDEN, MIDDLE, KV, VOCAB = 5, 256, 768, 128, 3072
FORMAT = "int4-g128"
EFFECTS = p.EffectKey("degrade", FORMAT)
SHAPES: dict[str, tuple[int, int]] = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (MIDDLE, HIDDEN),
    "mlp.up_proj": (MIDDLE, HIDDEN),
    "mlp.down_proj": (HIDDEN, MIDDLE),
}
EXPERTS = {"gate_up_proj": (2 * KV, HIDDEN), "down_proj": (HIDDEN, KV)}
"""Kinds of fused experts with the shape of one."""
SETTINGS = p.Settings(tokens=16384, seq_len=256)
PROFILE = load_profile("standard")


class Replay:
    """A link whose events are those the test gives, and that keeps the commands it was sent."""

    name = "demo"
    log_path = "/state/sessions/demo/engine.log"

    def __init__(self, events: Iterable[p.AnyEvent] = (), session: Session | None = None) -> None:
        self.sent: list[p.AnyCommand] = []
        """Commands without what identifies each request."""
        self.asks: list[str] = []
        """What identifies each request."""
        self.closed = False
        self._seq = 0
        self._journal = Session()
        self._waiting = self._died = False
        self.of_run = False
        self.others = p.Clients()
        """Who else is attached."""
        self._queue: asyncio.Queue[p.AnyEvent | Session | EngineGoneError] = asyncio.Queue()
        # An engine says first what it knows.
        self.give(session or Session(), *events)

    def give(self, *events: p.AnyEvent | Session) -> None:
        """Let the client receive these."""
        for event in events:
            self._queue.put_nowait(event)

    def die(self, reason: str, *log: str) -> None:
        """End, as an engine that crashed; ``log`` is the end of its log."""
        self._queue.put_nowait(EngineGoneError(reason, log, self.log_path))

    def heard(self) -> bool:
        """Whether the client has received all there was, and waits for more."""
        return self._waiting and self._queue.empty()

    async def send(self, command: p.AnyCommand) -> None:
        self.asks.append(command.ask)
        self.sent.append(msgspec.structs.replace(command, ask=""))
        if isinstance(command, p.AskClients):
            self.give(self.others)

    async def receive(self) -> p.Sent | Session:
        if self._died:  # the next engine knows the session from its journal, and no job of it
            self._died = False
            session = decode_session(encode_session(self._journal))
            session.jobs = {}
            return session
        self._waiting = True
        event = await self._queue.get()
        self._waiting = False
        if isinstance(event, EngineGoneError):
            self._died = True
            raise event
        if isinstance(event, Session):
            self._journal = decode_session(encode_session(event))
            return event
        kept = not isinstance(event, p.Transient)
        self._seq += kept
        apply(self._journal, event, self._seq if kept else 0)
        return p.Sent(self._seq if kept else 0, event)

    async def close(self) -> None:
        self.closed = True


def names() -> list[str]:
    """The layers of the demo, in the model's order."""
    body = [f"model.layers.{block}.{kind}" for block in range(BLOCKS) for kind in SHAPES]
    return ["model.embed_tokens", *body, "lm_head"]


def listed(layers: list[str] | None = None) -> p.LayersListed:
    """The rows of the table."""
    layers = names() if layers is None else layers
    kinds, blocks, roles, shapes = [], [], [], []
    for name in layers:
        parts = name.split(".")
        block = next((int(part) for part in parts if part.isdecimal()), -1)
        role: p.Role = "linear"
        if block < 0:
            role = "embedding" if "embed" in name else "head"
        kinds.append(parts[-1])
        blocks.append(block)
        roles.append(role)
        shapes.append(
            (VOCAB, HIDDEN) if block < 0 else SHAPES.get(".".join(parts[-2:]), (256, 256))
        )
    return p.LayersListed(
        names=layers, kinds=kinds, blocks=blocks, roles=roles, shapes=shapes,
        dtypes=["bfloat16"] * len(layers), other_bytes=5632,
    )  # fmt: skip


def mixture() -> p.LayersListed:
    """Rows in which every block has its experts, eight of them, as one fused layer."""
    layers = [name for name in names() if ".mlp." not in name]
    for block in range(BLOCKS):
        at = layers.index(f"model.layers.{block}.self_attn.o_proj") + 1
        layers[at:at] = [f"model.layers.{block}.mlp.experts.{kind}" for kind in EXPERTS]
    rows = listed(layers)
    fused = [kind in EXPERTS for kind in rows.kinds]
    return msgspec.structs.replace(
        rows,
        roles=["experts" if each else role for each, role in zip(fused, rows.roles, strict=True)],
        shapes=[
            (8, *EXPERTS[kind]) if each else shape
            for each, kind, shape in zip(fused, rows.kinds, rows.shapes, strict=True)
        ],
    )


def experts(layer: str, number: int = 8) -> p.ExpertsReady:
    """What is known of the experts of a fused layer: the third has weights that are no numbers."""
    rng = random.Random(layer)
    return p.ExpertsReady(
        layer=layer, std=[0.02 + 0.01 * rng.random() for _ in range(number)],
        max_abs=[0.4 + rng.random() for _ in range(number)],
        outliers=[0.004 * rng.random() for _ in range(number)],
        nonfinite=[3 * (expert == 2) for expert in range(number)],
        relative={FORMAT: [0.06 + 0.03 * rng.random() for _ in range(number)]},
    )  # fmt: skip


def weights(layer: str, row: int) -> p.LayerWeights:
    """What triage finds: the first down projection has an outlying channel."""
    rng = random.Random(row)
    loud = layer.endswith("0.mlp.down_proj")
    base = 0.066 + 0.02 * rng.random() + (0.05 if loud else 0)
    errors = {}
    for format, factor in (("int3-g128", 2.1), (FORMAT, 1.0), ("int8", 0.06)):
        relative = base * factor
        errors[format] = p.WeightError(
            3.1, relative, 0.02 * factor, 0.004, -20 * math.log10(relative)
        )
    return p.LayerWeights(
        layer=layer,
        outliers=p.Outliers(4.0, 803 if loud else 12 + row, 0.0041 if loud else 0.0003, 1.93),
        range_ratio=21.0, waste=0.4, kurtosis=8.3 if loud else 0.4, nan=0, inf=0, zero_rows=0,
        std=0.0412, worst_column=211, worst_column_sigma=18.2 if loud else 5.1, errors=errors,
    )  # fmt: skip


def sensitivity(layer: str, row: int, format: str = FORMAT) -> p.Sensitivity:
    """The effect of one layer: large at both ends of the model."""
    rng = random.Random(1000 + row)
    kl = 0.0004 * math.exp(1.4 * rng.random())
    if layer == "lm_head":
        kl = 0.00838
    elif layer.endswith("0.mlp.down_proj"):
        kl = 0.00522
    elif layer.endswith("down_proj"):
        kl *= 2
    dppl = 26.17 * kl * (1.2 if row % 5 else -0.1)
    half = 0.012 + 0.2 * abs(dppl)
    return p.Sensitivity(
        layer=layer, format=format, kl=kl, kl_se=kl / 18, dnll=dppl / 26.17, dnll_se=half / 52,
        dppl=dppl, dppl_low=dppl - half, dppl_high=dppl + half, tokens=16384, top1=1 - kl * 4,
    )  # fmt: skip


def histogram(layer: str, bins: int = 120) -> p.HistogramReady:
    """A bell with a few weights far out."""
    counts = [round(9000 * math.exp(-(((i - bins / 2) / (bins / 9)) ** 2))) for i in range(bins)]
    counts[3] += 2
    counts[-2] += 5
    return p.HistogramReady(layer=layer, low=-0.31, high=0.31, counts=counts, mean=0.0, std=0.0412)


def estimate(
    layer: str, row: int, format: str = FORMAT, direction: p.Direction = "degrade"
) -> p.Estimate:
    """The effect of one layer, estimated: at two bits it is doubtful."""
    rng = random.Random(2000 + row)
    kl = 0.0004 * math.exp(1.4 * rng.random()) * PRICES.get(format, 1.0)
    return p.Estimate(
        layer=layer, format=format, direction=direction, kl=kl, kl_se=kl / 5, dnll=kl,
        dnll_se=kl / 4, tokens=4096, draws=2, doubt=DOUBT if format.startswith("int2") else "",
    )  # fmt: skip


PRICES = {
    "int2-g128": 60.0, "int3-g128": 6.0, "int5-g128": 0.26, "int6-g128": 0.07, "int8": 0.01,
    "fp8-e4m3": 0.3, "nf4": 0.8, "q4_k": 0.7,
}  # fmt: skip
"""Effects of formats beside that of `FORMAT`."""
DOUBT = "at 2 bits the quadratic model ends: the true effect is often larger"


def estimated(
    formats: Iterable[str] = (*PRICES, FORMAT), direction: p.Direction = "degrade"
) -> p.Learned:
    """Estimates of every layer, a format after the other."""
    facts = [
        estimate(layer, row, format, direction)
        for format in formats
        for row, layer in enumerate(names())
    ]
    keys = [f"e {direction} {fact.format} {fact.layer}" for fact in facts]
    return p.Learned(tuple(keys), tuple(facts))


def agreement(
    layers: int = 24, format: str = FORMAT, direction: p.Direction = "degrade"
) -> p.Agreement:
    """Estimates that rank well, and are small by a third where effects are large."""
    return p.Agreement(
        format=format, direction=direction, layers=layers, rank_kl=0.978, rank_dnll=0.991,
        ratio=1.04, estimated=[1e-4, 1e-3, 1e-2], measured=[1e-4, 1.1e-3, 1.5e-2],
    )  # fmt: skip


def drawn(layer: str, format: str = FORMAT) -> p.HistogramReady:
    """A histogram with the sixteen levels of a format on it."""
    grid = [0.031 * (level - 7) for level in range(16)]
    return msgspec.structs.replace(histogram(layer), format=format, grid=grid, step=0.031)


PROTOCOL = p.Protocol(
    text="python 3.11 standard library, held out", text_sha256="0" * 64, tokens=16384, seq_len=256,
    stride=255, windows=64, dtype="float32", device="cpu",
)  # fmt: skip
BASELINE = p.Baseline(nll=math.log(26.17), nll_se=0.0061, ppl=26.17, tokens=16384)


def opening(layers: list[str] | p.LayersListed | None = None) -> Iterator[p.AnyEvent]:
    """From opening a checkpoint to a model that is ready and has its score."""
    yield p.Opened("demo", SETTINGS, {"qtui": "0.1.0"})
    yield p.JobStarted(
        job="1", kind="open", command=p.Open("demo", p.Settings()), title="open", total=0
    )
    yield p.CheckpointRead(
        name="demo", path="/demo", architecture="LlamaForCausalLM", parameters=5_800_000,
        bytes=11_600_000, dtype="bfloat16", fingerprint="f" * 16,
    )  # fmt: skip
    yield layers if isinstance(layers, p.LayersListed) else listed(layers)
    yield p.ModelReady(
        device="cpu", device_reason="no GPU", dtype="float32", dtype_reason="a CPU", blocks=BLOCKS,
        resumable=True, protocol=PROTOCOL, load_s=1.2, memory=23_000_000,
    )  # fmt: skip
    yield p.JobEnded(job="1", kind="open", status="done")
    yield p.Notice("info", "device: cpu, because no GPU was found; float32, because it is a CPU")
    yield p.Learned(("baseline",), (BASELINE,))


def triaged(layers: list[str] | None = None) -> Iterator[p.AnyEvent]:
    """The weights of every layer."""
    layers = names() if layers is None else layers
    yield p.JobStarted(
        job="2", kind="triage", command=p.Triage(), urgency=2, title="triage", total=len(layers)
    )
    for row, layer in enumerate(layers):
        yield p.Learned((f"w{row}",), (weights(layer, row),))
    yield p.JobEnded(job="2", kind="triage", status="done", measured=len(layers))


def swept(
    done: int | None = None, format: str = FORMAT, direction: p.Direction = "degrade"
) -> Iterator[p.AnyEvent]:
    """A sweep, whole or up to a layer; what a layer's keeping wins back is a little more."""
    layers, restore = names(), direction == "restore"
    job = "6" if restore else "3"
    yield p.JobStarted(
        job=job, kind="sweep", command=p.Sweep((format,), direction),
        title=f"sweep {format}{' restore' if restore else ''}", total=len(layers), urgency=4,
    )  # fmt: skip
    order = random.Random(7).sample(range(len(layers)), len(layers))
    for count, row in enumerate(order[:done], 1):
        fact = sensitivity(layers[row], row, format)
        if restore:
            fact = msgspec.structs.replace(fact, direction=direction, kl=1.3 * fact.kl)
        yield p.Learned((f"s{row} {direction}",), (fact,))
        yield p.Progress(
            job=job, done=count, total=len(layers), seconds_left=(37 - count) * 0.9,
            phase="measuring", subject=layers[row],
        )  # fmt: skip
    if done is None:
        yield p.JobEnded(job=job, kind="sweep", status="done", measured=len(layers))


def folded(*events: p.AnyEvent) -> Session:
    """The session that these events make."""
    session = Session()
    for event in events:
        apply(session, event)
    return session


def changed(session: Session, layers: list[str], format: str) -> p.RecipeChanged:
    """What the engine says when layers hold another format."""
    rows = [session.index[layer] for layer in layers]
    return p.RecipeChanged(
        how="set", layers=layers, before=[session.layers.holds[row] for row in rows],
        after=[format] * len(layers),
        bits=[math.prod(session.layers.shapes[row]) * 17 // 4 for row in rows],
    )  # fmt: skip


def score(recipe: str, *, ppl: float, half: float, tokens: int = 16384) -> p.RecipeScore:
    """A recipe's score, finished when it saw all tokens."""
    return p.RecipeScore(
        recipe=recipe, nll=math.log(ppl), ppl=ppl, ppl_low=ppl - half, ppl_high=ppl + half,
        dnll=math.log(ppl / 26.17), dnll_se=0.001, kl=0.01, kl_se=0.001, top1=0.97, tokens=tokens,
        bits_per_weight=4.25, bytes=2_600_000, done=tokens == PROTOCOL.tokens,
    )  # fmt: skip
