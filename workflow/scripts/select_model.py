"""Select a candidate of a grid by the bounds of the validation cells of a split.

What the training of the chosen one left is copied under the name of the model.
"""

import itertools
import logging
import shutil
from typing import Any

from samsvae.evaluation.model_selection import select, validation_bounds
from samsvae.runtime.files import whole_file, write_tsv
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    given, output, params = snakemake.input, snakemake.output, snakemake.params
    split, model, seed = (snakemake.wildcards[name] for name in ("split", "model", "seed"))
    runs = list(itertools.product(params.candidates, params.seeds))
    bounds = dict(zip(runs, given.iwelbo, strict=True))
    table = select(
        [(*run, validation_bounds(path)) for run, path in bounds.items()], params.candidates
    )
    chosen = table[table["chosen"]].iloc[0]
    logging.info("chosen: %s, %.2f nats per cell", chosen["candidate"], chosen["mean_iwelbo"])
    place = list(params.candidates).index(chosen["candidate"])
    sources = {"iwelbo": bounds[chosen["candidate"], int(seed)]}
    for name in ("by_particles", "effects", "model", "last_model", "history"):
        if name in dict(given.items()):
            sources[name] = given[name][place]
    for name, source in sources.items():
        with whole_file(output[name]) as temporary:
            shutil.copyfile(source, temporary)
    write_tsv(table.assign(split=split, model=model), output.selection, ["split", "model"])


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
