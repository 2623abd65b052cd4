"""Estimates the effects of all layers and formats from gradients."""
