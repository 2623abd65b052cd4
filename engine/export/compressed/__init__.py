"""Checkpoints for compressed-tensors: how each family is stored, and how they are written.

Equal, tensor for tensor, to what ``ModelCompressor`` of compressed-tensors writes. `form` describes
how each family is stored, in text, and names its tensors in `layouts`; `expressed` says which
formats are supported; `config` writes the entry of ``config.json``; `plan` and `writer` write the
folder.
"""
