"""Times and memory of a random mixture of experts in bfloat16."""

from __future__ import annotations

from tests.gpu.models import MIXTURE, TINY_MIXTURE, random_checkpoint
from tests.gpu.rows import Recorder
from tests.gpu.speed import Clock, large, measure, memory_of, product_rate
from tests.gpu.steps import Options


def run(options: Options, figures: Recorder) -> None:
    """What `tests.gpu.speed` measures first, on fused experts."""
    if options.tiny:
        from tests import tiny

        source = tiny.build("qwen3_moe", options.folder / "mixture", **TINY_MIXTURE)
    else:
        source = random_checkpoint("Qwen3Moe", options.folder / "mixture", options.device, MIXTURE)
    clock = Clock(options.device)
    loaded = large(options, source)
    network = loaded.network
    figures.same("can be resumed", float(network.resumable), 1.0,
                 note=network.why_not_resumable or "")  # fmt: skip
    clock.tell_memory(figures, "opening", memory_of(loaded))
    measure(options, figures, clock, loaded, product_rate(clock, options.tiny))
