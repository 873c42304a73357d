"""What models take of a cell beside its counts: its perturbations, as a design, and covariates."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import BATCH, CONTEXT
from samsvae.screen.design import Design
from samsvae.screen.labels import doses, label_of


@dataclass(frozen=True)
class Encoding:
    """Encoding of conditions as rows of a model's design matrix.

    Attributes
    ----------
    names
        The T perturbations, without doses.
    combinations
        ``additive``: a combination is the sum of its genes, each scaled by its dose; ``unique``:
        a combination is a perturbation of its own under its full label, doses included, while a
        single gene is scaled by its dose.
    targets
        Pairs of a perturbation and a gene that it targets, both as indices, in the order of
        perturbations; empty for a model without on-target effects.
    in_contexts
        Perturbation (its index) and context of each effect in one context alone, which follow the
        perturbations as columns of the design matrix; empty for a model whose effects all contexts
        share.
    """

    names: tuple[str, ...]
    combinations: str = "additive"
    targets: tuple[tuple[int, int], ...] = ()
    in_contexts: tuple[tuple[int, str], ...] = ()

    @classmethod
    def of(
        cls,
        design: Design,
        combinations: str,
        genes: Sequence[str] = (),
        contexts: pd.Series | None = None,
    ) -> "Encoding":
        """Create the encoding of the perturbations of a design matrix.

        Parameters
        ----------
        design
            Design matrix of a screen.
        combinations
            As for the class.
        genes
            Genes among which the targets are; without them there are no targets.
        contexts
            Context of each training cell of the design matrix, missing for other cells; None for
            effects that all contexts share. A perturbation has effects of its own in the contexts
            of its training cells, if there are several.
        """
        names = tuple(design.names)
        if combinations == "unique":
            names = tuple(sorted(set().union(*map(_as_one, design.conditions()[1]))))
        column = {gene: index for index, gene in enumerate(genes)}
        targets = tuple(
            (index, column[target])
            for index, name in enumerate(names)
            for target in doses(name)
            if target in column
        )
        encoding = cls(names, combinations, targets)
        if contexts is None:
            return encoding
        codes, conditions = design.conditions()
        present = pd.DataFrame({"code": codes.codes, "context": contexts.astype(object)}).dropna()
        rows = encoding.rows(conditions)[present["code"]] != 0
        found = [
            (index, context)
            for index in range(len(names))
            for own in [sorted(set(present["context"][rows[:, index]]))]
            if len(own) > 1
            for context in own
        ]
        encoding = replace(encoding, in_contexts=tuple(found))
        if len(set(encoding.effects)) < len(encoding.effects):
            twice = pd.Series(encoding.effects).mode()[0]
            raise InputError(
                f"context_effects: {twice!r} would name two effects; rename perturbations or "
                "contexts so that none is called 'a in b'."
            )
        return encoding

    @property
    def effects(self) -> tuple[str, ...]:
        """Names of the columns of the design matrix: perturbations, then those in a context."""
        return *self.names, *(f"{self.names[t]} in {context}" for t, context in self.in_contexts)

    @property
    def shared_effects(self) -> list[int]:
        """Perturbation of each of :attr:`in_contexts`."""
        return [perturbation for perturbation, _ in self.in_contexts]

    @property
    def target_genes(self) -> list[int]:
        """Gene of each pair of :attr:`targets`."""
        return [gene for _, gene in self.targets]

    def pairs(self, design: Tensor) -> tuple[Tensor, ...]:
        """Find the pairs of a perturbation and its target of each condition.

        Parameters
        ----------
        design
            Rows of the model's design matrix, conditions x T.

        Returns
        -------
        tuple of Tensor
            As of :attr:`samsvae.models.base.Batch.targets`, on the device of the design matrix;
            nothing without targets.
        """
        if not self.targets:
            return ()
        perturbation = np.array([index for index, _ in self.targets])
        number = np.bincount(perturbation, minlength=len(self.effects))
        first = np.cumsum(number) - number
        doses_of = design.cpu().numpy()
        row, column = np.nonzero(doses_of)
        row, column = (np.repeat(each, number[column]) for each in (row, column))
        # position of a pair among those of its perturbation, and of its condition
        among = pd.DataFrame({"row": row, "column": column}).groupby(["row", "column"]).cumcount()
        position = pd.Series(row).groupby(row).cumcount().to_numpy()
        shape = len(doses_of), int(position.max(initial=0)) + 1
        pairs, dose = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        pairs[row, position] = first[column] + among.to_numpy()
        dose[row, position] = doses_of[row, column]
        return torch.from_numpy(pairs).to(design.device), torch.from_numpy(dose).to(design.device)

    def design(self, labels: Sequence[str], contexts: Sequence[str] | None = None) -> np.ndarray:
        """Encode canonical labels as rows of the model's design matrix, as :meth:`rows`."""
        return self.rows([doses(label) for label in labels], contexts)

    def conditions(
        self, design: Design, obs: pd.DataFrame
    ) -> tuple[pd.MultiIndex, dict[tuple[str, str], dict[str, float]]]:
        """Find the distinct conditions of cells, contexts included if effects depend on them.

        Parameters
        ----------
        design
            Design matrix of the cells.
        obs
            Columns of the cells, the context among them if the model has effects in contexts.

        Returns
        -------
        keys : MultiIndex
            Label and context of each cell; an empty context if all share the effects.
        conditions : dict
            Dose by perturbation, of each distinct key, sorted.
        """
        labels, found = design.conditions()
        context = obs[CONTEXT].astype(str) if self.in_contexts else [""] * len(labels)
        keys = pd.MultiIndex.from_arrays([labels, context])
        known = dict(zip(labels.categories, found, strict=True))
        return keys, {key: known[key[0]] for key in sorted(set(keys))}

    def of_keys(self, conditions: Mapping[tuple[str, str], Mapping[str, float]]) -> np.ndarray:
        """Encode what :meth:`conditions` found as rows of the model's design matrix."""
        return self.rows(list(conditions.values()), [context for _, context in conditions])

    def knows(self, condition: Mapping[str, float]) -> bool:
        """Whether the model has all perturbations of a condition."""
        given = condition if self.combinations == "additive" else _as_one(condition)
        return set(given) <= set(self.names)

    def rows(
        self, conditions: Sequence[Mapping[str, float]], contexts: Sequence[str] | None = None
    ) -> np.ndarray:
        """Encode conditions as rows of the model's design matrix.

        Parameters
        ----------
        conditions
            Dose by perturbation; empty for control.
        contexts
            Context of each; None for the effects that all contexts share.

        Returns
        -------
        ndarray of float32
            Conditions x T, or T and the effects in contexts.

        Raises
        ------
        KeyError
            If a condition has a perturbation that is not in `names`.
        """
        column = {name: index for index, name in enumerate(self.names)}
        own = {pair: len(self.names) + index for index, pair in enumerate(self.in_contexts)}
        rows = np.zeros((len(conditions), len(self.effects)), dtype=np.float32)
        for row, condition in enumerate(conditions):
            given = condition if self.combinations == "additive" else _as_one(condition)
            for name, dose in given.items():
                rows[row, column[name]] = dose
                if contexts is not None and (pair := (column[name], contexts[row])) in own:
                    rows[row, own[pair]] = dose
        return rows


def _as_one(condition: Mapping[str, float]) -> Mapping[str, float]:
    """Treat a combination as a single perturbation, named by its label."""
    return condition if len(condition) < 2 else {label_of(condition): 1.0}


@dataclass(frozen=True)
class Covariates:
    """Encoding of covariates of cells as inputs of a model's encoder and decoder.

    A categorical covariate, such as the batch, has an input for each level, 1 for the cells of this
    level and 0 for others. A continuous one is standardised.

    Attributes
    ----------
    levels
        Levels of each categorical column of obs.
    scaling
        Mean and standard deviation over training cells of each continuous column of obs.
    strata
        Levels that occur together in training cells, one per categorical column.
    frequency
        Fraction of the training cells in each stratum.
    """

    levels: dict[str, list[str]] = field(default_factory=dict)
    scaling: dict[str, tuple[float, float]] = field(default_factory=dict)
    strata: list[list[str]] = field(default_factory=lambda: [[]])
    frequency: list[float] = field(default_factory=lambda: [1.0])

    @classmethod
    def of(cls, obs: pd.DataFrame, columns: Sequence[str] | None) -> "Covariates":
        """Create the encoding of the covariates of training cells.

        Parameters
        ----------
        obs
            Training cells of a canonical screen.
        columns
            Columns of obs; None for batch and context, where the screen has them. Columns with
            one value have no input.

        Raises
        ------
        InputError
            If there is no such column, or a value is missing or infinite.
        """
        if columns is None:
            columns = [name for name in (BATCH, CONTEXT) if name in obs]
        levels, scaling = {}, {}
        refuse_unknown_covariates(columns, obs)
        for name in columns:
            if obs[name].isna().any():
                raise InputError(
                    f"covariates: {int(obs[name].isna().sum())} training cells have no {name!r}."
                )
            if obs[name].nunique() < 2:
                continue
            if _is_continuous(obs[name]):
                values = _finite_or_missing(obs, name)
                scaling[name] = float(values.mean()), float(values.std())
            else:
                levels[name] = sorted(obs[name].astype(str).unique())
        if not levels:
            return cls(levels, scaling)
        number = obs[list(levels)].astype(str).value_counts(normalize=True).sort_index()
        return cls(levels, scaling, [list(key) for key in number.index], number.tolist())

    def __len__(self) -> int:
        """Return the number of inputs."""
        return sum(map(len, self.levels.values())) + len(self.scaling)

    def encode(self, obs: pd.DataFrame) -> np.ndarray:
        """Encode the covariates of cells, cells x inputs, float32.

        A cell whose level no training cell has, or whose level is missing, gets 0 for all levels; a
        missing number is the mean over training cells.

        Raises
        ------
        InputError
            If a value is infinite or not numeric.
        """
        parts: list[np.ndarray] = [np.zeros((len(obs), 0), dtype=np.float32)]
        for name, levels in self.levels.items():
            code = pd.Index(levels).get_indexer(obs[name].astype(str))
            rows = np.eye(len(levels) + 1, len(levels), dtype=np.float32)
            parts.append(rows[code])  # the last row, 0, for -1
        for name, (mean, deviation) in self.scaling.items():
            standardised = (_finite_or_missing(obs, name) - mean) / deviation
            parts.append(np.nan_to_num(standardised)[:, None])
        return np.concatenate(parts, axis=1).astype(np.float32)

    def on_device(self, obs: pd.DataFrame, device: torch.device) -> tuple[Tensor, ...]:
        """Encode covariates on a device, as the only item; nothing without covariates."""
        return (torch.from_numpy(self.encode(obs)).to(device),) if len(self) else ()

    def stratum(self, obs: pd.DataFrame) -> np.ndarray:
        """Find the stratum of each cell, -1 for one that no training cell is in, or of no batch."""
        if not self.levels:
            return np.zeros(len(obs), dtype=np.int64)
        if not set(self.levels) <= set(obs):
            return np.full(len(obs), -1)
        strata = pd.MultiIndex.from_tuples(map(tuple, self.strata))
        keys = [obs[name].astype(str) for name in self.levels]
        return strata.get_indexer(pd.MultiIndex.from_arrays(keys))

    @property
    def contexts(self) -> list[str | None]:
        """Context of each stratum; None for all if the context is no covariate."""
        if CONTEXT not in self.levels:
            return [None] * len(self.strata)
        return [stratum[list(self.levels).index(CONTEXT)] for stratum in self.strata]

    def of_strata(self) -> np.ndarray:
        """Encode the strata, strata x inputs, with continuous covariates at their means."""
        obs = pd.DataFrame(self.strata, columns=list(self.levels))
        return self.encode(obs.assign(**{name: mean for name, (mean, _) in self.scaling.items()}))


def refuse_unknown_covariates(columns: Iterable[str], known: Collection[str]) -> None:
    """Refuse covariates that are no columns of obs.

    Raises
    ------
    InputError
        Naming the first of them and the columns that there are.
    """
    for name in columns:
        if name not in known:
            raise InputError(
                f"covariates: the screen has no column {name!r}; it has {', '.join(known)}."
            )


def _is_continuous(column: pd.Series) -> bool:
    is_number = pd.api.types.is_numeric_dtype(column)
    return is_number and not pd.api.types.is_bool_dtype(column)


def _finite_or_missing(obs: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column of numbers as float64, NaN where one is missing; refuse others."""
    try:
        values = obs[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"covariates: {name!r} is a number in the training cells; here it is not ({error})."
        ) from error
    number = int(np.isinf(values).sum())
    if number:
        raise InputError(
            f"covariates: {name!r} is infinite in {number} cells. Give each a finite number, or "
            "leave the value out."
        )
    return values


NO_COVARIATES = Covariates()


def sizes_of(encoding: Encoding, covariates: Covariates) -> tuple[int, int, list[int], list[int]]:
    """Return the sizes of a model after its genes, as :func:`samsvae.models.build_model` takes."""
    of_targets, shared = encoding.target_genes, encoding.shared_effects
    return len(encoding.names), len(covariates), of_targets, shared
