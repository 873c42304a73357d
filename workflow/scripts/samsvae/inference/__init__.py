"""Inference: data on the device, the objective, training, checkpoints, importance weighting."""
