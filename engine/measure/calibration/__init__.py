"""Inputs gathered for methods that need them, and layers quantised with them."""
