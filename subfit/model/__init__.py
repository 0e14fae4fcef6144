"""The model: its submodules, its residual stream, what replaces a submodule, checkpoints, loading, sizes, processes."""
