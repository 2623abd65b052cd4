"""The engine: commands in, events out; scheduler, socket server, gauges, threads."""
