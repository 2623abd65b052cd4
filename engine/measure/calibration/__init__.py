"""Calibration: gathers inputs for methods that need them, and quantises layers with them."""
