"""Values under the cells of heat maps, in the metadata of their drawings."""

import html
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import QuadMesh

from samsvae.figures.style import heatmap, panels, save_figure, use_style
from tests.unit.test_figures import OPTIONS, TABLES, function_of

HEAT_MAPS = [
    ("similarity", "many"),
    ("latent_effects", "many"),
    ("factors", "few"),
    ("pathway_map", "both"),
    ("truth", "two models"),
    ("contexts", "two"),
]


def saved(figure, path):
    save_figure(figure, "caption", "{}", [path])
    return path.read_text()


def cells_in(svg):
    found = re.search(r"<dc:relation>(.*?)</dc:relation>", svg, re.DOTALL)
    return json.loads(html.unescape(found[1]))


def is_heat_map(axis):
    drawn = [*axis.images, *(one for one in axis.collections if isinstance(one, QuadMesh))]
    return bool(drawn) and axis.get_label() != "<colorbar>"


def shown_values(axis):
    """The values of a heat map as they are drawn, rows x columns."""
    drawn = axis.images[0] if axis.images else axis.collections[0]
    values = np.ma.filled(np.ma.asarray(drawn.get_array(), dtype=float), np.nan)
    left, right = axis.get_xlim()
    return values.reshape(-1, round(right - left))


def mark_centres(axis, name):
    """Draw a mark on the centre of each cell, row by row."""
    rows, columns = np.indices(shown_values(axis).shape)
    x = min(axis.get_xlim()) + columns.ravel() + 0.5
    y = min(axis.get_ylim()) + rows.ravel() + 0.5
    axis.plot(x, y, linestyle="", marker="o", gid=name, scalex=False, scaley=False)


def marks(svg, name):
    """Places of the marks as fractions of the drawing."""
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    group = re.search(rf'<g id="{name}">(.*?)</g>\s*</g>', svg, re.DOTALL)[1]
    places = re.findall(r'<use [^>]*x="([-\d.]+)" y="([-\d.]+)"', group)
    return np.array(places, dtype=float) / [width, height]


@pytest.mark.slow
@pytest.mark.parametrize("case", HEAT_MAPS, ids=lambda case: case[0])
def test_every_cell_has_the_value_that_is_drawn_there(case, tmp_path):
    use_style()
    figure = function_of(case[0])(TABLES[case], **OPTIONS)
    maps = list(filter(is_heat_map, figure.axes))
    values = [shown_values(axis) for axis in maps]
    labels = [[label.get_text() for label in axis.get_yticklabels()] for axis in maps]
    for number, axis in enumerate(maps):
        mark_centres(axis, f"mark{number}")
    svg = saved(figure, tmp_path / "drawn.svg")
    named = cells_in(svg)
    assert len(named) == len(maps) > 0
    for number, (one, drawn) in enumerate(zip(named, values, strict=True)):
        stored = np.array(one["values"], dtype=float).reshape(drawn.shape)
        np.testing.assert_allclose(stored, drawn, rtol=0.006)
        assert (len(one["rows"]), len(one["columns"])) == drawn.shape
        assert one["quantity"]
        left, top, width, height = one["place"]
        across, down = marks(svg, f"mark{number}").T
        column = np.floor((across - left) / width * drawn.shape[1])
        row = np.floor((down - top) / height * drawn.shape[0])
        expected_row, expected_column = np.indices(drawn.shape)
        np.testing.assert_array_equal(row, expected_row.ravel())
        np.testing.assert_array_equal(column, expected_column.ravel())
        if case[0] != "pathway_map" and any(labels[number]):  # its labels shorten the names
            assert one["rows"] == labels[number]


def test_dimensions_keep_their_own_numbers(tmp_path):
    """Columns are ordered by strength, so that a column's place is not its dimension."""
    use_style()
    table = TABLES["latent_effects", "many"]
    [one, *_] = cells_in(saved(function_of("latent_effects")(table, **OPTIONS), tmp_path / "a.svg"))
    own = table[table["model"] == "sams_vae"].set_index(["perturbation", "dimension"])["shift"]
    dimensions = [int(name.removeprefix("dimension ")) for name in one["columns"]]
    assert dimensions != sorted(dimensions)
    cells = pd.MultiIndex.from_product([one["rows"], dimensions])
    np.testing.assert_allclose(one["values"], own.loc[cells], rtol=0.006)


def test_names_are_kept_whatever_they_contain_and_missing_values_are_none(tmp_path):
    use_style()
    matrix = pd.DataFrame([[0.12345, np.nan]], index=["</a>&\"'"], columns=["β", "]]>"])
    figure, [axis] = panels(1, 1, 1)
    heatmap(axis, matrix, "units & signs <", 1)
    svg = saved(figure, tmp_path / "a.svg")
    [one] = cells_in(svg)
    assert (one["rows"], one["columns"]) == (["</a>&\"'"], ["β", "]]>"])
    assert one["values"] == [0.123, None]
    assert one["quantity"] == "units & signs <"


def test_a_figure_without_a_heat_map_names_no_cells(tmp_path):
    use_style()
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 1])
    assert "dc:relation" not in saved(figure, tmp_path / "a.svg")
