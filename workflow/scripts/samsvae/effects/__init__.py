"""Average treatment effects, observed and predicted, in log2(CP10k + 1)."""
