"""Figures: a module is a subject, and a function ``draw_<figure>`` of it draws a figure.

It draws one tidy table with the options ``models`` and ``evaluation``, and computes nothing: each
number that a figure shows is a number of its table. :mod:`style` and :mod:`text` are shared.
"""
