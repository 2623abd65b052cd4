"""Arithmetic of formats on weights: one file per family, one file per method.

`quantize` is the entry point for every family, `solve` for formats that use a layer's inputs. A
family declares its `arithmetic` at the end of its file; `data_free` has the methods that need only
the weight, `methods` those that use inputs.
"""
