"""``--to gguf``: one file, which llama.cpp and what is built on it run."""

from __future__ import annotations

from engine.export.gguf.expressed import NAME, alike, why_not_expressed
from engine.export.target import Target

TARGET = Target(
    name="gguf",
    help="a whole GGUF file, which llama.cpp runs",
    why_not_expressed=why_not_expressed,
    alike=alike,
    why_alike="GGUF files store a tied head and embedding as one tensor",
    form=NAME,
    writer="engine.export.gguf.writer:WRITER",
    ending=".gguf",
    use="use it as: llama-cli -m {file}",
    differs=(
        "llama.cpp rounds the inputs of quantised layers to 8 bits, which qtui's figures leave out"
    ),
)
