"""Published weights by name: which there are, and their file in our names on this machine.

`published.json` is the table; `table` reads it, `cache` fetches, checks and converts what it lists.
"""

from sparsedet.weights.table import Published, find_published, published_config, published_weights

__all__ = ["Published", "find_published", "published_config", "published_weights"]
