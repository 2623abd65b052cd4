"""Weights as they are once stored in a format: one file a family, one file a method.

`quantize` is the entry for every family, `solve` for formats that look at a layer's inputs. A
family declares its `arithmetic` at the end of its file; `data_free` holds methods that need the
weight alone, `methods` those that look at inputs.
"""
