"""Fits: regression, one-shot and sequential fits, gradient fits, trials, budgets, costs."""
