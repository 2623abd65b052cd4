"""Measurements of weights alone: statistics, errors, outliers, histograms."""
