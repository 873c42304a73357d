"""Measurements, each a command that prints JSON: ``python -m benchmarks.<name>``."""

import os

# as the workflow does for its jobs, before PyTorch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
