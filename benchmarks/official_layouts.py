"""Files of the layouts in which the screens of Norman and Replogle are published, of any size.

Columns of ``obs`` and ``var``, types, chunks and compression are those of the published files (as
far as they are documented); names are the published ones where a reference table lists them. The
counts are simulated cells, repeated. ``python -m benchmarks.official_layouts --help`` lists the
options.
"""

import argparse

from benchmarks.official_norman import NormanCells, simulate_norman, write_norman
from benchmarks.official_replogle import TARGETED_SHARE, ReplogleLayout, write_replogle

__all__ = [
    "TARGETED_SHARE",
    "NormanCells",
    "ReplogleLayout",
    "simulate_norman",
    "write_norman",
    "write_replogle",
]


def main() -> None:
    """Read the options and write a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screen", choices=["norman", "replogle"])
    parser.add_argument("path")
    parser.add_argument("--copy", choices=["original", "scperturb"], default="original")
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.screen == "norman":
        cells = simulate_norman(
            arguments.cells, arguments.genes, arguments.genes // 5, seed=arguments.seed
        )
        write_norman(arguments.path, arguments.copy, cells)
    else:
        layout = ReplogleLayout(
            arguments.copy, arguments.cells, arguments.genes, seed=arguments.seed
        )
        write_replogle(arguments.path, layout)


if __name__ == "__main__":
    main()
