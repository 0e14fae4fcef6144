"""Grids of compressions: cells, the state that they share, rows of results, the report."""
