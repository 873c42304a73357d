"""Generative models with their guides, and their registry."""
