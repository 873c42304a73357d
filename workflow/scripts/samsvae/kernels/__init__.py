"""Fast kernels behind plain functions: linear layers and the Gamma-Poisson log-density."""
