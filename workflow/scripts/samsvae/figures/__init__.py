"""Figures: each module draws one from one tidy table, ``draw(table, models, evaluation)``."""
