"""What `sparsedet benchmark` measures, one module for each mode, and what the modes share."""
