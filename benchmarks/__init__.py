"""Benchmarks to run by hand: `python -m benchmarks.<name>`. The package does not import them."""
