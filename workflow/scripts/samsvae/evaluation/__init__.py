"""Evaluation: observed and predicted effects, metrics, and statistical comparison of models."""
