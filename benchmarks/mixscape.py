"""Mixscape's class of each cell of a screen, by pertpy, which has an environment of its own.

``python -m venv .venv/mixscape``, ``.venv/mixscape/bin/pip install --requirement
benchmarks/mixscape.txt`` and ``.venv/mixscape/bin/python benchmarks/mixscape.py
papalexi2021_thp1_ko_20729x299.h5ad classes.tsv --replicate bio_rep`` write a table with the
``class`` (KO, NP or NT) and the posterior ``probability`` of each cell, for
:mod:`benchmarks.responders`. Labels are in obs["condition"]; expression is log1p of counts per
10,000, and the perturbation signature is relative to the 20 nearest control cells, within
replicates.
"""

import argparse

import anndata
import pandas as pd
import pertpy
import scanpy

NEIGHBOURS = 20


def main() -> None:
    """Read the options, classify, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("output")
    parser.add_argument("--label", default="condition", help="column of obs with perturbations")
    parser.add_argument("--control", default="control", help="label of control cells")
    parser.add_argument("--replicate", default=None, help="column of obs with replicates")
    given = parser.parse_args()
    cells = anndata.read_h5ad(given.file)
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    scanpy.pp.pca(cells)
    mixscape = pertpy.tl.Mixscape()
    how = {"pert_key": given.label, "control": given.control}
    mixscape.perturbation_signature(
        cells, **how, split_by=given.replicate, n_neighbors=NEIGHBOURS, use_rep="X_pca"
    )
    mixscape.mixscape(cells, **how, layer="X_pert", split_by=given.replicate)
    table = pd.DataFrame(
        {
            "cell": cells.obs_names,
            "perturbation": cells.obs[given.label].astype(str).to_numpy(),
            "class": cells.obs["mixscape_class_global"].astype(str).to_numpy(),
            "probability": cells.obs["mixscape_class_p_ko"].to_numpy(),
        }
    )
    table.to_csv(given.output, sep="\t", index=False)
    print(pd.crosstab(table["perturbation"], table["class"]))


if __name__ == "__main__":
    main()
