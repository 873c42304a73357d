"""How well predicted effects find the genes that differential expression finds."""

import anndata
import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score


def compare_with_de(
    observed: anndata.AnnData, predicted: anndata.AnnData, fdr: float
) -> pd.DataFrame:
    """Score the absolute predicted effect as a finder of differentially expressed genes.

    Parameters
    ----------
    observed
        Observed effects with the layers ``fdr`` and ``ate_held_out``.
    predicted
        Predicted effects of the same perturbations and genes, in any order.
    fdr
        False discovery rate below which a gene is differentially expressed.

    Returns
    -------
    DataFrame
        One row per perturbation: n_held_out (cells tested), n_de (genes found), auroc and auprc
        of |predicted effect|, precision_at_k (share of DE genes among as many top predictions),
        sign_agreement (share of DE genes whose predicted sign is right; no change predicted is
        never right) and spearman (over DE genes). NaN where undefined.
    """
    predicted = predicted[observed.obs_names, observed.var_names]
    rows = []
    for index, name in enumerate(observed.obs_names):
        rates = np.asarray(observed.layers["fdr"][index])
        effect = np.asarray(observed.layers["ate_held_out"][index])
        rows.append(
            {
                "perturbation": name,
                "n_held_out": int(observed.obs["n_held_out"].iloc[index]),
                **_scores(rates < fdr, effect, np.asarray(predicted.X[index])),
            }
        )
    return pd.DataFrame(rows)


def _scores(is_de: np.ndarray, effect: np.ndarray, guess: np.ndarray) -> dict[str, float]:
    n_de = int(is_de.sum())
    scores: dict[str, float] = dict.fromkeys(
        ("auroc", "auprc", "precision_at_k", "sign_agreement", "spearman"), float("nan")
    )
    if n_de:
        strength = np.abs(guess)
        scores["auprc"] = float(average_precision_score(is_de, strength))
        # ties share their places, so that a constant prediction scores as chance does
        order = np.argsort(-strength, kind="stable")
        cut = strength[order[n_de - 1]]
        above, tied = strength > cut, strength == cut
        share = (n_de - above.sum()) / tied.sum()
        scores["precision_at_k"] = float((is_de[above].sum() + share * is_de[tied].sum()) / n_de)
        scores["sign_agreement"] = float(np.mean(np.sign(guess[is_de]) == np.sign(effect[is_de])))
        if n_de < len(is_de):
            scores["auroc"] = float(roc_auc_score(is_de, strength))
        if n_de > 2 and np.ptp(guess[is_de]) > 0:
            scores["spearman"] = float(spearmanr(guess[is_de], effect[is_de]).statistic)
    return {"n_de": n_de, **scores}
