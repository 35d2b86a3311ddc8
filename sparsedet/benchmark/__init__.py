"""What tools/benchmark.py measures, one module for each mode, and what the modes share."""
