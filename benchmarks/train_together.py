"""Steps of several seeds as one batched program, against the same steps one seed after another.

``python -m benchmarks.train_together`` prints JSON. The default is a small model, as for the
simulated screen; --help lists the options.
"""

import argparse
import json

import pyro
import torch

from benchmarks.train import seconds_per_call, simulate_cells
from samsvae.inference.cells import choose_device
from samsvae.inference.joint_step import JointStep
from samsvae.inference.memory import keep_freed_memory
from samsvae.inference.step import Training
from samsvae.inference.together import Member
from samsvae.inference.trainer import Fitting
from samsvae.models.registry import build_model


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Run the benchmark."""
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    pyro.enable_validation(False)
    device = choose_device()
    cells = simulate_cells(arguments.genes, arguments.perturbations, device)
    training = Training(batch_size=arguments.batch, particles=arguments.particles)
    settings = {
        "kind": arguments.model,
        "n_latent": arguments.latents,
        "n_hidden": arguments.hidden,
    }

    def member(seed: int) -> Member:
        return Member(
            lambda: build_model(settings, arguments.genes, arguments.perturbations),
            cells,
            training,
            seed,
        )

    alone = Fitting(member(0).model, cells, training, seed=0)
    members = [member(seed) for seed in range(arguments.seeds)]
    take = JointStep([each.model for each in members], cells, training)

    def joint_step() -> None:
        take.draw(each.stream for each in members)
        take(torch.stack([next(each.batches) for each in members]), 0)

    one, joint = seconds_per_call([alone.take_step, joint_step], arguments.seconds, device)
    return {
        "model": arguments.model,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seeds": arguments.seeds,
        "milliseconds_alone": round(1e3 * one, 2),
        "milliseconds_together": round(1e3 * joint, 2),
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
