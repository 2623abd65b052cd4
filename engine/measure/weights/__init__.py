"""Weights alone: statistics, errors, outliers, histograms."""
