"""Which cells figures of bounds show."""

import pandas as pd

CELLS = {"test": "test cells", "val": "validation cells"}


def unseen_cells(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Keep the bounds of test cells, or of validation cells where no cell is left to test.

    Returns
    -------
    rows : DataFrame
        Those of the table whose scope these cells are.
    name : str
        What to call them.
    """
    scope = "test" if (table["scope"] == "test").any() else "val"
    return table[table["scope"] == scope], CELLS[scope]
