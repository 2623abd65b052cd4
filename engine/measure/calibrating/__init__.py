"""Calibration sets compared: what each does to a method's result, and what is wrong with it."""
