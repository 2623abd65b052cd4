"""Workers: processes that measure parts of an engine's job, on other devices."""
