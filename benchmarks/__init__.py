"""Measurements, each a command that prints JSON: ``python -m benchmarks.<name>``."""

import os

# as the workflow does for its jobs, before PyTorch is imported
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="10000")
