"""Tests of figures and documents."""
