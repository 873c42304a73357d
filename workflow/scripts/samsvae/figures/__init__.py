"""Figures: a module called as a figure is has ``draw(table, models, evaluation)``.

It draws the figure from one tidy table. The other modules are what several of them share.
"""
