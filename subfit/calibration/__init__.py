"""The calibration data: sources, what passes the submodules when they read it, moments, cache."""
