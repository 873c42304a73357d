"""Score two files of cells by the packaged rules vcc2026 of cell-eval2, and print them as JSON.

It needs cell-eval2 0.20.0 and pdex 0.3.0, and nothing of this project:

    python tests/unit/judged_by_cell_eval2.py predicted.h5ad measured.h5ad real

The third argument says whose control cells predicted cells are compared with: "real" or "pred".
"""

import json
import sys
from dataclasses import replace

import anndata


def main(predicted: str, measured: str, control: str) -> None:
    """Score the predicted cells, and print the mean of each metric."""
    from cell_eval2.config import EvalConfig
    from cell_eval2.run import aggregate_metrics, compute_metrics

    rules = EvalConfig.from_preset("vcc2026")
    test = replace(rules.de, backend="pdex")
    rules = replace(rules, control_source=control, de=test, num_threads=1)
    cells = map(anndata.read_h5ad, (predicted, measured))
    table = aggregate_metrics(compute_metrics(*cells, config=rules))
    print(json.dumps({metric: value for metric, value, _ in table.iter_rows()}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
