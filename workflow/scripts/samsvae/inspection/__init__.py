"""Checks of a screen before training: counts, design, names."""
