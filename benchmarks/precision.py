"""What a training reaches with matrices multiplied at each precision, and how long it takes.

``python -m benchmarks.precision --screen results/screens/my_screen/screen.h5ad`` trains a
correlated SAMS-VAE on a canonical screen for each precision and seed, and prints JSON: the best
validation bounds, nats per cell, and the seconds of each training. On a CPU that multiplies at no
other precision, all are the same. --help lists the options.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from samsvae.config.experiments import Split
from samsvae.inference.cells import Cells
from samsvae.inference.encoding import Encoding
from samsvae.inference.machine import MATMUL_PRECISIONS, choose_device
from samsvae.inference.step import Training
from samsvae.inference.trainer import fit
from samsvae.models import build_model
from samsvae.screen.canonical import open_screen
from samsvae.screen.design import Design
from samsvae.screen.splits import TRAIN, VAL, split_screen

MODEL = {
    "kind": "sams_vae",
    "embedding": "correlated",
    "n_latent": 50,
    "n_hidden": 200,
    "mask_prior": 0.01,
}


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    device = choose_device()
    with open_screen(arguments.screen) as screen:
        parts = split_screen(screen, Split("random", 0))
        encoding = Encoding.of(Design.of_screen(screen), "additive")
        train, validation = (
            Cells.of(screen, parts == part, encoding, device) for part in (TRAIN, VAL)
        )
        build = partial(build_model, MODEL, screen.n_vars, len(encoding.names))
    bounds: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for precision in MATMUL_PRECISIONS:
        training = Training(
            max_steps=arguments.steps,
            learning_rate=0.002,
            learning_rate_schedule="cosine",
            validate_every=min(250, arguments.steps),
            matmul_precision=precision,
        )
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            [fitted] = fit(build, train, validation, training, [seed])
            history = fitted.history
            best = history.loc[history["cells"] == "val", "elbo"].max()
            bounds.setdefault(precision, []).append(round(float(best), 3))
            seconds.setdefault(precision, []).append(round(time.perf_counter() - started, 1))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "validation_elbo": bounds, "seconds": seconds}


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--screen", type=Path, required=True, help="a canonical screen")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
