"""Generative models with their guides, and the registry that finds them by name."""
