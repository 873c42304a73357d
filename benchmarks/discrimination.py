"""Time and memory of the discrimination metrics for many perturbations.

``python -m benchmarks.discrimination`` prints JSON: seconds of each metric with a matrix of
distances between perturbations, elapsed and of the processor, and the peak memory of the process,
of which the two matrices of effects are a part. The default is 10,000 perturbations and 2,000
genes, at one thread.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from samsvae.evaluation.agreement import (
    discrimination_cosine,
    discrimination_l1,
    discrimination_l2,
    retrieval_rank,
)

METRICS = (retrieval_rank, discrimination_l1, discrimination_l2, discrimination_cosine)
NOISE = 30.0  # standard deviation of predictions around effects of standard deviation 1


def main() -> None:
    """Measure each metric and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--perturbations", type=int, default=10_000)
    parser.add_argument("--genes", type=int, default=2_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(options.perturbations, options.genes))
    predicted = NOISE * rng.normal(size=observed.shape)
    predicted += observed
    seconds: dict[str, list[float]] = {}
    means = {}
    for metric in METRICS:
        started = np.array([time.perf_counter(), time.process_time()])
        means[metric.__name__] = round(float(metric(observed, predicted).mean()), 3)
        took = np.array([time.perf_counter(), time.process_time()]) - started
        seconds[metric.__name__] = took.round(1).tolist()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {**vars(options), "seconds": seconds, "mean": means, "peak_gib": round(peak, 2)}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
