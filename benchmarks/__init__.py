"""Measurements, run by hand: `python -m benchmarks.<name>`. The package does not know them."""
