"""Activations: inputs and outputs of every layer over the calibration text."""
