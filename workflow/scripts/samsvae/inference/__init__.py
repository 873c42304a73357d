"""Inference: cells on the device, evidence bounds, training, checkpoints, posterior queries."""
