"""Writes recipes as files that other programs load; `targets` has one file per target.

Nothing is imported here, so that the interface can list targets without a tensor library.
"""
