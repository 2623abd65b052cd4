"""Whole GGUF files, which llama.cpp runs: metadata, tokenizer, and weights in our own bytes.

`expressed` says what the format holds, in text; `settings` and `tokens` make metadata of a config
and a tokenizer; `plan` names and changes every tensor as llama.cpp wants it; `writer` writes.
"""
