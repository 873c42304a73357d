import numpy as np
import pandas as pd
import pyarrow.parquet

from samsvae.evaluation.metrics import (
    COLUMNS,
    METRICS,
    NAMES,
    described,
    read_perturbation_metrics,
    read_run_metrics,
)
from samsvae.runtime.files import read_table, write_parquet_parts

RUN = {"split": "s", "model": "m", "seed": 3}


def of_run(**values):
    table = pd.DataFrame({"scope": "test", "metric": values.keys(), "value": values.values()})
    return table.assign(**RUN)


def of_perturbations(split, names, metric):
    table = pd.DataFrame({"perturbation": names, "tested": [True, False], "metric": metric})
    table = table.assign(**{**RUN, "split": split}, value=[0.5, np.nan])
    return table.assign(scope="perturbation")


def test_every_number_stands_beside_what_it_says(tmp_path):
    runs = of_run(median_rmse_top20_held_out=0.3, spread_rmse=0.1, iwelbo=-600.0, mask_density=0.2)
    perturbations = [
        of_perturbations("s", ["A", "B"], "de_auroc"),
        of_perturbations("another", ["C", "A"], "pearson_held_out"),
    ]
    path = tmp_path / "metrics.parquet"
    parts = (described(table, 20) for table in (runs, *perturbations))
    write_parquet_parts(parts, NAMES, '{"a": 1}', path)
    table = read_table(path)
    assert list(table) == COLUMNS
    assert {str(table[name].dtype) for name in NAMES} == {"category"}
    assert len(table) == 4 + 2 * 2
    assert pyarrow.parquet.read_metadata(path).metadata[b"provenance"] == b'{"a": 1}'

    first = table.iloc[0]
    rmse = METRICS["rmse"]
    assert (first["unit"], first["direction"], first["best"]) == (rmse.unit, "lower", 0)
    assert first["description"] == rmse.description
    assert np.isnan(first["chance"])
    assert table["perturbation"].isna().sum() == table["tested"].isna().sum() == 4
    by_metric = table.set_index("metric")
    assert by_metric.loc["spread_rmse", "unit"] == rmse.unit
    assert pd.isna(by_metric.loc["spread_rmse", "direction"])
    assert by_metric.loc["mask_density", "unit"] == "fraction"
    assert by_metric.loc["iwelbo", "unit"] == "nats per cell"

    single = table[table["scope"] == "perturbation"]
    assert list(single["perturbation"]) == ["A", "B", "C", "A"]
    assert list(single["tested"]) == [True, False, True, False]
    assert single["chance"].tolist() == [0.5, 0.5, 0, 0]
    assert set(single["split"]) == {"s", "another"}

    again = read_run_metrics(path)
    pd.testing.assert_frame_equal(again, runs[list(again)])
    assert list(read_perturbation_metrics(path, ["another"])["perturbation"]) == ["C", "A"]
    assert len(read_perturbation_metrics(path, ["s", "another"])) == 4


def test_parts_of_any_size_become_one_table(tmp_path):
    """More names in a later part than fit the integers that would do for the first."""
    parts = [pd.DataFrame({"name": [f"P{i}" for i in range(n)], "x": 1.0}) for n in (2, 300)]
    write_parquet_parts(iter(parts), ["name"], "{}", tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert list(table["name"]) == [*parts[0]["name"], *parts[1]["name"]]


def test_a_table_without_rows_is_a_part_like_others(tmp_path):
    parts = [described(table, 20) for table in (of_run(iwelbo=-600.0), of_run())]
    write_parquet_parts(parts, NAMES, "{}", tmp_path / "t.parquet")
    assert len(read_table(tmp_path / "t.parquet")) == 1


def test_small_parts_are_written_together(tmp_path, monkeypatch):
    """As one table of few pieces, the last of what is left, names and missing ones as they were."""
    monkeypatch.setattr("samsvae.runtime.files.ROWS_PER_GROUP", 25)
    names = [f"P{i}" if i % 7 else None for i in range(93)]
    whole = pd.DataFrame({"name": names, "x": np.arange(93.0)})
    parts = [whole.iloc[first : first + 10] for first in range(0, 93, 10)]
    write_parquet_parts(parts, ["name"], '{"a": 1}', tmp_path / "t.parquet")
    file = pyarrow.parquet.read_metadata(tmp_path / "t.parquet")
    assert [file.row_group(n).num_rows for n in range(file.num_row_groups)] == [30, 30, 30, 3]
    assert file.metadata[b"provenance"] == b'{"a": 1}'
    table = read_table(tmp_path / "t.parquet")
    assert table["name"].cat.categories.is_unique
    pd.testing.assert_frame_equal(table.astype({"name": object}), whole, check_categorical=False)
