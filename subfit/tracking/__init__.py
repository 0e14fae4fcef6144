"""Loggers and plots."""
