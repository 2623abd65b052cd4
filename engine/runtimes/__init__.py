"""How fast a finished checkpoint runs, in a runtime that is installed: `qtui bench`.

The runtime works in a process of its own, which `engine.runtimes.running` starts and watches; what
that process imports of qtui is `child` and `drivers`, which use the standard library alone, so that
it may be the Python of another environment. Nothing here is simulated.
"""
