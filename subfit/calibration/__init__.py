"""Calibration data: sources, activations at the submodules, moments, cache."""
