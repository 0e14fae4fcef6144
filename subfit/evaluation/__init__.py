"""What a model is worth: perplexity, divergence, zero-shot tasks, confidence intervals, comparison with the dense model."""
