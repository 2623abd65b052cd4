"""GGUF files as checkpoints: llama.cpp's container, with its own config and tokenizer.

`header` reads what a file says and believes none of it; `architectures` declares how llama.cpp
names and changes the tensors of each family, and its settings, which exports write by the same
declarations; `config` and `tokenizer` are made from metadata; `checkpoint` joins all.
"""

from engine.checkpoint.gguf.checkpoint import GgufCheckpoint, is_gguf, open_gguf

__all__ = ["GgufCheckpoint", "is_gguf", "open_gguf"]
