"""The evaluations of a training: its history, its best weights, and when it has ceased to rise."""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import pandas as pd
from torch import Tensor

from samsvae.inference.divergence import check_validated
from samsvae.inference.step import Training, first_decided
from samsvae.models.base import PerturbationModel

logger = logging.getLogger(__name__)


class Course:
    """What the evaluations of a training have shown.

    Parameters
    ----------
    model
        With its weights at the start.
    training
        How the model is fitted.
    """

    def __init__(self, model: PerturbationModel, training: Training) -> None:
        self.training = training
        self.first_decided = first_decided(model, training)
        self.rows: list[dict[str, Any]] = []
        self.best, self.best_step = -float("inf"), 0
        self.best_weights = copy.deepcopy(model.state_dict())

    def judge(
        self,
        step: int,
        fitted: dict[str, float],
        validated: dict[str, float],
        weights: Mapping[str, Tensor],
    ) -> None:
        """Note an evaluation, and keep the weights if masks are decided and they are the best."""
        check_validated(validated, step, self.training)
        self.rows.append({"step": step, "cells": "train", **fitted})
        self.rows.append({"step": step, "cells": "val", **validated})
        if step >= self.first_decided and validated["elbo"] > self.best:
            self.best, self.best_step = validated["elbo"], step
            self.best_weights = copy.deepcopy(dict(weights))

    def exhausted(self, step: int) -> bool:
        """Whether the validation bound has not risen for as long as patience lasts."""
        patience = self.training.patience
        if patience is None or not self.best_step:
            return False
        if step - self.best_step < patience * self.training.validate_every:
            return False
        logger.info("stopped at step %d, the best being step %d", step, self.best_step)
        return True

    def values(self) -> dict[str, Any]:
        """All that is kept of the evaluations, but for the best weights, as JSON has it."""
        return {"best": self.best, "best_step": self.best_step, "rows": self.rows}

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Set what :meth:`values` gave."""
        self.best, self.best_step = values["best"], values["best_step"]
        self.rows = values["rows"]

    def history(self) -> pd.DataFrame:
        """One row per evaluation and set of cells."""
        return pd.DataFrame(self.rows)
