"""Splits of cells into training, validation and test cells, common to all models and baselines.

Kinds of splits of Bereket & Karaletsos 2023, section 4: ``random``, ``unseen_combinations`` and
``data_efficiency``. Where a screen has contexts, such as cell lines: ``unseen_contexts`` tests
pairs of a perturbation and a context, ``leave_context_out`` all perturbations in one context.
``unseen_perturbations`` tests perturbations without any training cell.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd

from samsvae.config.experiments import OF_CONTEXTS, UNSEEN_PERTURBATIONS, Split
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_table, read_table_in_parts
from samsvae.screen.canonical import CONTEXT, LOST_CELLS, lost_cells
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL, components

TRAIN, VAL, TEST, UNUSED = "train", "val", "test", "unused"
TEST_FRACTION = 0.2
VAL_FRACTION = 0.2  # of the cells that are not test cells, 16 % of all
TEST_PAIRS_FRACTION = 0.25
FEWEST_CELLS = 10
FEWEST_TRAINED = 3  # perturbations, of a split that holds out perturbations
TEXT = ("cell", "perturbation", "split")  # columns of the table of a split


def split_screen(screen: anndata.AnnData, split: Split) -> np.ndarray:
    """Split the cells of a screen by :func:`split_cells`, or by the parts of its simulator."""
    if split.kind == "as_simulated":
        return screen.obs["part"].to_numpy(dtype=object)
    design = Design.of_screen(screen)
    if split.kind in OF_CONTEXTS:
        return split_contexts(design, screen.obs[CONTEXT].astype(str).to_numpy(), split)
    if split.kind == UNSEEN_PERTURBATIONS:
        return split_perturbations(design, split)
    return split_cells(design, split)


def split_cells(design: Design, split: Split) -> np.ndarray:
    """Split cells into training, validation and test cells.

    Parameters
    ----------
    design
        Design matrix of the cells.
    split
        The kind of split, its fraction and its seed.

    Returns
    -------
    ndarray of str
        For each cell ``train``, ``val``, ``test`` or ``unused``.

    Raises
    ------
    InputError
        If there are too few cells, or no combinations although the kind needs them.
    """
    n_cells = len(design)
    if n_cells < FEWEST_CELLS:
        raise InputError(f"{n_cells} cells cannot be split; at least {FEWEST_CELLS} are needed.")
    rng = np.random.default_rng(split.seed)
    parts = np.full(n_cells, UNUSED, dtype=object)
    if split.kind == "random":
        for part, cells in _train_val_test(np.arange(n_cells), rng).items():
            parts[cells] = part
        return parts
    if split.fraction is None:
        raise InputError(f"A split of the kind {split.kind!r} needs a fraction.")
    is_pair = design.n_perturbations > 1
    if not is_pair.any():
        raise InputError(
            f"The split {split.kind!r} needs cells with combinations, and the screen has none. "
            "Use the split 'random', or set the screen's 'delimiter'."
        )
    # the same draw for both kinds, which therefore agree if every pair may be trained on
    of_pairs = _train_val_test(np.flatnonzero(is_pair), rng)
    others = rng.permutation(np.flatnonzero(~is_pair))
    n_val = round(VAL_FRACTION * len(others))
    if split.kind == "unseen_combinations":
        labels = np.asarray(design.labels())
        of_pairs = _of_chosen_pairs(of_pairs, labels, split.fraction, split.seed)
    else:
        of_pairs[TRAIN] = of_pairs[TRAIN][: round(split.fraction * len(of_pairs[TRAIN]))]
    for part, cells in [*of_pairs.items(), (VAL, others[:n_val]), (TRAIN, others[n_val:])]:
        parts[cells] = part
    return parts


def split_contexts(design: Design, context: np.ndarray, split: Split) -> np.ndarray:
    """Split cells so that perturbations are tested in contexts in which they are not trained.

    Parameters
    ----------
    design
        Design matrix of the cells.
    context
        Context of each cell.
    split
        ``unseen_contexts`` with its fraction, or ``leave_context_out`` with its context.

    Returns
    -------
    ndarray of str
        For each cell ``train``, ``val`` or ``test``. Test cells are all cells of the pairs of a
        perturbation and a context that are held out; of control cells and of each other pair,
        80 % are training and 20 % validation cells. A context without control cells is not held
        out, since its effects would be unknown.

    Raises
    ------
    InputError
        If there are fewer than two contexts, no such context, or no pair that can be held out.
    """
    contexts = sorted(set(context))
    if len(contexts) < 2:
        raise InputError(
            f"The split {split.kind!r} needs cells of two contexts or more; all cells are of "
            f"{contexts[0]!r}."
        )
    is_perturbed = design.n_perturbations > 0
    labels = np.asarray(design.labels())
    if split.kind == "leave_context_out":
        if split.context not in contexts:
            raise InputError(
                f"The split 'leave_context_out' has no context {split.context!r}; the screen has "
                f"{', '.join(map(repr, contexts))}."
            )
        tested = is_perturbed & (context == split.context)
        for what, cells in (("perturbed", tested), ("control", ~is_perturbed)):
            if not (cells & (context == split.context)).any():
                raise InputError(
                    f"The split 'leave_context_out' cannot test the context {split.context!r}: it "
                    f"has no {what} cells. Leave out another one."
                )
    else:
        known = is_perturbed & np.isin(context, context[~is_perturbed])
        pairs = sorted(set(zip(labels[known], context[known], strict=True)))
        held = held_out_pairs(pairs, split.fraction or 0.0, split.seed)
        if not held:
            raise InputError(
                f"The split 'unseen_contexts' with the fraction {split.fraction:g} holds out none "
                f"of {len(pairs)} pairs of a perturbation and a context with control cells: lower "
                "the fraction; a perturbation in a single context cannot be held out there."
            )
        chosen = pd.MultiIndex.from_tuples(sorted(held))
        tested = is_perturbed & pd.MultiIndex.from_arrays([labels, context]).isin(chosen)
    # by pair, so that each keeps training cells, and each context control cells of both parts
    return _test_cells(tested, {"label": labels, "context": context}, split.seed)


def _test_cells(tested: np.ndarray, groups: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    """Take some cells for testing, and of each group of the others 20 % for validation."""
    parts = np.full(len(tested), TRAIN, dtype=object)
    parts[tested] = TEST
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~tested))
    own = pd.DataFrame({name: values[others] for name, values in groups.items()})
    grouped = own.groupby(list(groups))
    position, number = grouped.cumcount(), grouped[next(iter(groups))].transform("size")
    parts[others[position < (VAL_FRACTION * number).round()]] = VAL
    return parts


def split_perturbations(design: Design, split: Split) -> np.ndarray:
    """Split cells so that some perturbations are tested without any training cell.

    Parameters
    ----------
    design
        Design matrix of the cells.
    split
        ``unseen_perturbations``, with the fraction of single perturbations that is trained on.

    Returns
    -------
    ndarray of str
        For each cell ``train``, ``val`` or ``test``. Test cells are all cells with a held-out
        perturbation, alone or in a combination; of each other condition and of control, 80 % are
        training and 20 % validation cells. Held out are perturbations with cells of their own, so
        that each has an observed effect; where no cell has a single perturbation, any.

    Raises
    ------
    InputError
        If no perturbation is held out, or fewer than :data:`FEWEST_TRAINED` are trained on.
    """
    alone = design.n_perturbations == 1
    candidates = design[alone].names if alone.any() else design.names
    held = held_out_perturbations(candidates, split.fraction or 0.0, split.seed)
    n_trained = len(candidates) - len(held)
    if not held or n_trained < FEWEST_TRAINED:
        problem = (
            f"trains on {n_trained} of {len(candidates)} single perturbations, and at least "
            f"{FEWEST_TRAINED} are needed: raise the fraction"
            if held
            else f"holds out none of {len(candidates)} single perturbations: lower the fraction"
        )
        raise InputError(
            f"The split {UNSEEN_PERTURBATIONS!r} with the fraction {split.fraction:g} {problem}."
        )
    is_held = np.isin(np.array(design.names, dtype=object), sorted(held))
    tested = np.asarray((design.matrix[:, is_held] != 0).sum(axis=1)).ravel() > 0
    return _test_cells(tested, {"label": np.asarray(design.labels())}, split.seed)


def held_out_perturbations(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Choose perturbations to hold out.

    Parameters
    ----------
    names
        Distinct perturbations, sorted.
    fraction
        Fraction of them that is trained on.
    seed
        Seed of the order in which they are held out; a smaller fraction holds out more of them.
    """
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[at] for at in order[: len(names) - round(fraction * len(names))]}


def held_out_pairs(
    pairs: Sequence[tuple[str, str]], fraction: float, seed: int
) -> set[tuple[str, str]]:
    """Choose pairs of a perturbation and a context to hold out.

    Parameters
    ----------
    pairs
        Distinct pairs, sorted.
    fraction
        Fraction of pairs that may be trained on.
    seed
        Seed of the order in which pairs are held out; a smaller fraction holds out more of them.

    Returns
    -------
    set of tuple
        At most the other pairs: a pair stays if no other pair of its perturbation, or none of its
        context, would be left.
    """
    order = np.random.default_rng(seed).permutation(len(pairs))
    left = [pd.Series(name).value_counts().to_dict() for name in zip(*pairs, strict=True)]
    n_held = len(pairs) - round(fraction * len(pairs))
    held: set[tuple[str, str]] = set()
    for at in order:
        pair = pairs[at]
        if len(held) < n_held and all(n[name] > 1 for n, name in zip(left, pair, strict=True)):
            held.add(pair)
            for number, name in zip(left, pair, strict=True):
                number[name] -= 1
    return held


def _train_val_test(cells: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw test cells, then validation cells of the others; each in the order drawn."""
    order = rng.permutation(cells)
    n_test = round(TEST_FRACTION * len(cells))
    n_val = round(VAL_FRACTION * (len(cells) - n_test))
    return {
        TEST: order[:n_test],
        VAL: order[n_test : n_test + n_val],
        TRAIN: order[n_test + n_val :],
    }


def _of_chosen_pairs(
    of_pairs: dict[str, np.ndarray], labels: np.ndarray, fraction: float, seed: int
) -> dict[str, np.ndarray]:
    """Select test cells of the last quarter of pairs, others of the first fraction of pairs."""
    pairs = sorted({labels[cell] for cells in of_pairs.values() for cell in cells})
    trained, tested = chosen_pairs(pairs, fraction, seed)
    kept = {TEST: tested, VAL: trained, TRAIN: trained}
    return {
        part: np.array([cell for cell in cells if labels[cell] in kept[part]], dtype=int)
        for part, cells in of_pairs.items()
    }


def chosen_pairs(pairs: Sequence[str], fraction: float, seed: int) -> tuple[set[str], set[str]]:
    """Choose training pairs and test pairs.

    Parameters
    ----------
    pairs
        Distinct labels.
    fraction
        Fraction of all pairs that may be trained on. Up to 0.75 they are disjoint from the test
        pairs; with 1 test pairs are also trained on, by other cells.
    seed
        Seed of the order; a larger fraction adds pairs.

    Returns
    -------
    trained, tested : set of str
        The first pairs in this order, and the last quarter, at least one.
    """
    order = np.array(sorted(pairs), dtype=object)
    np.random.default_rng(seed).shuffle(order)
    n_untested = min(round((1 - TEST_PAIRS_FRACTION) * len(order)), len(order) - 1)
    n_trained = round(fraction * len(order))
    if fraction <= 1 - TEST_PAIRS_FRACTION:
        n_trained = min(n_trained, n_untested)
    return set(order[:n_trained]), set(order[n_untested:])


def check_trained(design: Design, parts: np.ndarray, untrained_perturbations: str) -> list[str]:
    """Find the single perturbations without training cells.

    Parameters
    ----------
    design
        Design matrix of the cells.
    parts
        Split of :func:`split_cells`.
    untrained_perturbations
        ``refuse`` or ``keep_prior``, as in the configuration.

    Returns
    -------
    list of str
        Their names, in alphabetical order.

    Raises
    ------
    InputError
        If there are any and they are to be refused, or if there are no training control cells.
    """
    is_control = design.n_perturbations == 0
    # only a screen with marginal effects may have none at all
    if is_control.any() and not is_control[parts == TRAIN].any():
        raise InputError(
            f"None of the {int(is_control.sum())} control cell(s) is a training cell. Add "
            f"cells labelled {CONTROL!r} to the screen, or use another seed of the split."
        )
    cells = dict(zip(design.names, design.matrix.getnnz(axis=0), strict=True))
    untrained = sorted(set(cells) - set(design[parts == TRAIN].names))
    if untrained and untrained_perturbations == "refuse":
        some = ", ".join(f"{name} ({cells[name]} cells)" for name in untrained[:5])
        raise InputError(
            f"{len(untrained)} perturbation(s) have no training cell in this split: {some}. "
            "Exclude perturbations with few cells by the screen's 'min_cells' (for instance "
            "min_cells: 10), or set the split's 'untrained_perturbations' to 'keep_prior': the "
            "effects of these perturbations then keep their prior."
        )
    return untrained


def held_out_cells(labels: pd.Series, parts: pd.Series) -> np.ndarray:
    """Select the held-out cells of each perturbation.

    Parameters
    ----------
    labels, parts
        Perturbation and split of each cell.

    Returns
    -------
    ndarray of bool
        Test and unused cells; for a perturbation without any, its validation cells, which
        selected the best checkpoint but were not trained on.
    """
    unseen = parts.isin([TEST, UNUSED])
    has_unseen = unseen.groupby(labels, observed=True).transform("any")
    return (unseen | (~has_unseen & (parts == VAL))).to_numpy(dtype=bool)


def split_table(screen: anndata.AnnData, parts: Sequence[str] | pd.Series) -> pd.DataFrame:
    """Tabulate a split as in split.tsv.

    Returns
    -------
    DataFrame
        Columns cell, perturbation, library_size (counts), split.
    """
    return pd.DataFrame(
        {
            "cell": screen.obs_names,
            "perturbation": screen.obs["perturbation"].astype(str).to_numpy(),
            "library_size": screen.obs["library_size"].to_numpy(),
            "split": np.asarray(parts, dtype=object),
        }
    )


def cell_table(screen: anndata.AnnData, parts: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Count the cells of each part of each split, and those left out before, by reason.

    Parameters
    ----------
    screen
        Canonical screen.
    parts
        Part of each cell (train, val, test or unused), by the name of the split.

    Returns
    -------
    DataFrame
        ``split`` (empty for cells in no split), ``part`` (left out, or of the split), ``reason`` of
        cells that are left out, ``cells``, and ``fraction`` of all cells of the source.
    """
    lost = screen.uns.get(LOST_CELLS, lost_cells({}))
    n_all = screen.n_obs + int(lost["cells"].sum())
    rows = [("", "left out", reason, n) for reason, n in lost.itertuples(index=False)]
    for name, of_cells in parts.items():
        numbers = of_cells.value_counts()
        for part in (TRAIN, VAL, TEST, UNUSED):
            reason = "not in the split" if part == UNUSED else ""
            if numbers.get(part, 0):
                rows.append((name, part, reason, int(numbers[part])))
    table = pd.DataFrame(rows, columns=["split", "part", "reason", "cells"])
    return table.assign(fraction=table["cells"] / n_all)


def read_split(path: str | Path, screen: anndata.AnnData) -> pd.Series:
    """Read a split of a screen.

    Returns
    -------
    Series
        Split by cell, in the screen's order.

    Raises
    ------
    InputError
        If the file is of another screen.
    """
    table = read_table(path, TEXT).set_index("cell")["split"]
    if not table.index.equals(pd.Index(screen.obs_names)):
        raise _of_another_screen(path)
    return table


@dataclass(frozen=True)
class CellsOfSplit:
    """Iterable over the rows of a split's table in blocks, validated against the screen.

    Attributes
    ----------
    path
        File of the split.
    screen
        File of the screen.
    block_size
        Number of cells in a block.
    """

    path: Path
    screen: Path
    block_size: int

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Iterate over all cells in order.

        Raises
        ------
        InputError
            If the split is of another screen.
        """
        done = 0
        with h5py.File(self.screen, "r") as file:
            names = file["obs"][file["obs"].attrs["_index"]].asstr()
            for block in read_table_in_parts(self.path, self.block_size, TEXT):
                if list(block["cell"]) != list(names[done : done + len(block)]):
                    raise _of_another_screen(self.path)
                done += len(block)
                yield block
            if done != len(names):
                raise _of_another_screen(self.path)


def _of_another_screen(path: str | Path) -> InputError:
    return InputError(
        f"{path}: its cells are not those of the screen. Remove the file, so that it is made again."
    )


def shuffled_cells(parts: pd.Series, seed: int) -> np.ndarray:
    """Permute the conditions of training cells, and those of validation cells.

    Cells, conditions and their numbers stay the same, but conditions are independent of cells: the
    score of a model trained on them is that of a negative control.

    Parameters
    ----------
    parts
        Split of each cell, as in split.tsv.
    seed
        Seed of the permutation.

    Returns
    -------
    ndarray of int
        Index of the cell whose condition each cell gets; test and unused cells keep their own.
    """
    rng = np.random.default_rng(seed)
    source = np.arange(len(parts))
    for part in (TRAIN, VAL):
        own = np.flatnonzero(parts == part)
        source[own] = rng.permutation(own)
    return source


KINDS = {0: "control", 1: "single", 2: "combination"}
SIZE_BINS = 40


def parts_table(split: pd.DataFrame) -> pd.DataFrame:
    """Count the cells of each kind in each part of a split.

    Parameters
    ----------
    split
        As of :func:`split_table`.

    Returns
    -------
    DataFrame
        One row per kind (control, single or combination) and part (train, val, test or unused):
        cells, and the fraction of the kind's cells.
    """
    labels = split["perturbation"]
    size = {label: min(len(components(label)), 2) for label in labels.unique()}
    number = pd.crosstab(labels.map(size).map(KINDS), split["split"])
    kinds = [kind for kind in KINDS.values() if kind in number.index]
    number = number.reindex(index=kinds, columns=[TRAIN, VAL, TEST, UNUSED], fill_value=0)
    fraction = number.div(number.sum(axis=1), axis=0)
    rows = [
        (kind, part, number.loc[kind, part], fraction.loc[kind, part])
        for kind in kinds
        for part in number
    ]
    return pd.DataFrame(rows, columns=["kind", "part", "cells", "fraction"])


def screen_table(split: pd.DataFrame, by_perturbation: bool = False) -> pd.DataFrame:
    """Count the cells of each perturbation, and describe the distribution of library sizes.

    Parameters
    ----------
    split
        As of :func:`split_table`.
    by_perturbation
        Whether a cell counts for each of its single perturbations, not for its condition.

    Returns
    -------
    DataFrame
        Rows of two measures. ``cells``: the number of cells (value) of a perturbation, control
        first, then from the most frequent on. ``density``: the density of cells, per unit of log10
        of their counts, between two library sizes (lower, upper), of control and of perturbed
        cells (kind), in the same 40 intervals.
    """
    number = split["perturbation"].value_counts()
    if by_perturbation:
        parts = {label: components(label) or [CONTROL] for label in number.index}
        one_each = number.rename("n").rename_axis("label").reset_index()
        exploded = one_each.assign(part=one_each["label"].map(parts)).explode("part")
        number = exploded.groupby("part")["n"].sum().sort_values(ascending=False, kind="stable")
    names = [CONTROL, *number.index.drop(CONTROL, errors="ignore")]
    rows: list[dict[str, Any]] = [
        {
            "measure": "cells",
            "kind": _kind(name),
            "perturbation": name,
            "value": int(number.get(name, 0)),
        }
        for name in names
    ]
    positive = split[split["library_size"] > 0]
    logs = np.log10(positive["library_size"].to_numpy(dtype=float))
    edges = np.histogram_bin_edges(logs, SIZE_BINS) if len(logs) else np.array([])
    limits = list(zip(10 ** edges[:-1], 10 ** edges[1:], strict=True))
    kinds = positive["perturbation"].map(_kind).to_numpy()
    for kind in np.unique(kinds):
        density, _ = np.histogram(logs[kinds == kind], edges, density=True)
        rows += [
            {"measure": "density", "kind": kind, "lower": lower, "upper": upper, "value": value}
            for (lower, upper), value in zip(limits, density, strict=True)
        ]
    columns = ["measure", "kind", "perturbation", "lower", "upper", "value"]
    return pd.DataFrame(rows).reindex(columns=columns)


def _kind(label: str) -> str:
    return "control" if label == CONTROL else "perturbed"
