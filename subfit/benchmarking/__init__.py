"""Speed and memory, the cost of a compression, models with random weights."""
