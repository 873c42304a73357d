"""Evaluation: observed and predicted effects, metrics, and statistical comparison of models."""

UNITS = "log2(CP10k + 1)"  # of effects
