"""Published weights by name: which there are, and their file in our names on this machine.

`published.json` is the table, which `table` reads; `cache` fetches what it lists, checks it and
converts it.
"""

from sparsedet.weights.table import Published, find_published, published_config, published_weights

__all__ = ["Published", "find_published", "published_config", "published_weights"]
