"""Weights as they are once stored in a format: one file a family, `methods` one file a method.

`quantize` is the entry for every family, `solve` for formats that look at a layer's inputs.
"""
