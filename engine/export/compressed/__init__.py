"""Checkpoints in the form of compressed-tensors: what each family is stored as there, and writing.

Equal, tensor for tensor, to what ``ModelCompressor`` of compressed-tensors writes. `form` says how
each family is stored, in text, and names its tensors in `layouts`; `expressed` says which formats
have a place there; `config` is what ``config.json`` gets; `plan` and `writer` make the folder.
"""
