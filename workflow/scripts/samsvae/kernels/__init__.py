"""Compiled kernels: linear layers, the Gamma-Poisson log-density, random numbers."""

SMALLEST_MEAN = 1e-4  # added to the means of counts
