"""Steps of several seeds as one batched program, against the same steps one seed after another.

On a CPU the operations of a step are recorded and repeated; ``milliseconds_unrecorded`` is the step
of all seeds without that.

``python -m benchmarks.train_together`` prints JSON. The default is a small model, as for the
simulated screen; --help lists the options.
"""

import argparse
import json

import pyro
import torch

from benchmarks.train import seconds_per_call, simulate_cells
from samsvae.inference.machine import choose_device, keep_freed_memory
from samsvae.inference.step import STEPS_WORTH_RECORDING, Training
from samsvae.inference.trainer import Trainer
from samsvae.models import build_model


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    pyro.enable_validation(False)
    device = choose_device()
    cells = simulate_cells(arguments.genes, arguments.perturbations, device)
    settings = {
        "kind": arguments.model,
        "n_latent": arguments.latents,
        "n_hidden": arguments.hidden,
    }

    def trainer(n_seeds: int, max_steps: int = STEPS_WORTH_RECORDING) -> Trainer:
        sizes = arguments.genes, arguments.perturbations
        how = {"batch_size": arguments.batch, "particles": arguments.particles}
        training = Training(max_steps=max_steps, **how)
        return Trainer(lambda: build_model(settings, *sizes), cells, training, range(n_seeds))

    alone, together = trainer(1), trainer(arguments.seeds)
    unrecorded = trainer(arguments.seeds, STEPS_WORTH_RECORDING - 1)
    steps = [each.take_step for each in (alone, together, unrecorded)]
    with alone.replicates[0].stream():
        one, joint, plain = seconds_per_call(steps, arguments.seconds, device)
    return {
        "model": arguments.model,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seeds": arguments.seeds,
        "milliseconds_alone": round(1e3 * one, 2),
        "milliseconds_together": round(1e3 * joint, 2),
        "milliseconds_unrecorded": round(1e3 * plain, 2),
        "speed_up": round(arguments.seeds * one / joint, 2),
    }


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sams_vae")
    for name, value in (
        ("seeds", 5),
        ("genes", 300),
        ("perturbations", 24),
        ("latents", 20),
        ("hidden", 128),
        ("batch", 256),
        ("particles", 5),
        ("threads", 1),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure each")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
