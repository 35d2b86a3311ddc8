"""Token-sparse detection transformers: one detector, every method a config."""

__version__ = "0.1.0.dev0"
