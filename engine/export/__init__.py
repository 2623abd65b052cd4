"""A recipe as files that other programs load: `targets` has one file a target.

Nothing is imported here, so that the interface can list the targets without a tensor library.
"""
