"""The report with all that it shows in one file, to pass on."""

import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from samsvae.chapters import Table
from samsvae.contents import stages_of
from samsvae.files import whole_file

EARLIEST = (1980, 1, 1, 0, 0, 0)  # the same files give the same archive


def write_archive(
    experiments: Mapping[str, Collection[str]], page: str | Path, path: str | Path
) -> None:
    """Pack the page with the figures, as SVG and PDF, and the tables that it shows.

    Parameters
    ----------
    experiments
        What each experiment has, see :mod:`samsvae.contents`.
    page
        The report; the experiments' folders are beside it.
    path
        The archive. Names in it are relative to the page, so that its links hold.
    """
    results = Path(page).parent
    files = [Path(page), *_shown(experiments, results)]
    with (
        whole_file(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in files:
            entry = zipfile.ZipInfo(str(Path("report") / file.relative_to(results)), EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())


def _shown(experiments: Mapping[str, Collection[str]], results: Path) -> Iterator[Path]:
    for experiment, properties in experiments.items():
        for stage in stages_of(properties):
            for entry in stage.entries:
                if isinstance(entry, Table):
                    yield results / experiment / "tables" / entry.name
                else:
                    drawing = results / experiment / "figures" / entry.name
                    yield from (drawing.with_suffix(suffix) for suffix in (".svg", ".pdf"))
