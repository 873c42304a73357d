"""Measurements, each a command that prints JSON: ``python -m benchmarks.<name>``."""
