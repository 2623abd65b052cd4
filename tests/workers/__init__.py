"""Workers: queue, processes, and what they measure."""
