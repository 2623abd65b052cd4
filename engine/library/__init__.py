"""qtui as a library: an open checkpoint, and typed results of its jobs.

Nothing global is changed: no logging setup, no environment variable, no thread settings.
"""
