"""Loggers, plots, records and their provenance, atomic files."""
