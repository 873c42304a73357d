"""Fast kernels behind plain functions: linear layers and the Gamma-Poisson log-density."""

SMALLEST_MEAN = 1e-4  # added to the means of counts
