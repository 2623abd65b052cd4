"""``--to gptq``: a folder in the layout of GPTQ, which GPTQModel, vLLM, SGLang and others load."""

from __future__ import annotations

from engine.export.gptq.expressed import why_not_expressed
from engine.export.rules import FUSED, UNTIES, why_no_role
from engine.export.target import Target

TARGET = Target(
    name="gptq",
    help="a checkpoint in GPTQ's layout, for GPTQModel, vLLM and SGLang",
    why_not_expressed=why_not_expressed,
    why_not_weight=lambda fmt, weight: why_no_role(weight, "the GPTQ layout", ("linear", "head")),
    writer="engine.export.gptq.writer:WRITER",
    mixed=FUSED,
    folds=True,
    unties=UNTIES,
)
