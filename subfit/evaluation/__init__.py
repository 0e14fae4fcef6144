"""The quality of a model: perplexity, divergence, zero-shot tasks, confidence intervals, comparison with the dense model."""
