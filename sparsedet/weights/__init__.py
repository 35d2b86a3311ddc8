"""Published weights by name.

`published.json` is the table, which `table` reads; `cache` downloads the listed files, checks them
and converts them to our names.
"""

from sparsedet.weights.table import Published, find_published, published_config, published_weights

__all__ = ["Published", "find_published", "published_config", "published_weights"]
