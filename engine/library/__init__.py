"""qtui as a library: a checkpoint that is open, and typed results of what is asked of it.

Nothing global is changed: no logging setup, no environment variable, no thread settings.
"""
