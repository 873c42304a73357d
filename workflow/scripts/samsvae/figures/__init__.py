"""Figures: a module is a subject, and a function ``draw_<figure>`` of it draws a figure.

It draws one tidy table with those of the options ``models``, ``evaluation`` and ``reference``
(cells that perturbations are compared with) that it needs, and computes nothing: each number that a
figure shows is a number of its table. :mod:`style` is shared, and so are the display names and
captions here.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docutils.core
import jinja2

TERMS = {
    "sams vae": "SAMS-VAE",
    "cpa vae": "CPA-VAE",
    "svae plus": "SVAE+",
    "beta bernoulli": "beta-Bernoulli",
    "vae": "VAE",
    "rna": "RNA",
}


def readable(name: str) -> str:
    """Write a configured name as words, with the field's terms spelt as usual.

    The hyperparameters of a candidate of a grid follow in brackets.
    """
    model, *differences = name.split("--")
    if differences and all("-" in difference for difference in differences):
        chosen = (difference.replace("_", " ").replace("-", " ", 1) for difference in differences)
        return f"{readable(model)} ({', '.join(chosen)})"
    words = name.replace("_", " ")
    for term, spelt in TERMS.items():
        if f" {term} " in f" {words} ":
            words = f" {words} ".replace(f" {term} ", f" {spelt} ").strip()
    return words


def minus(number: str) -> str:
    """Write a formatted number with the minus sign of typography."""
    return number.replace("-", "−")


# abbreviations in names of gene sets, beside those with a digit, such as G2M
ABBREVIATIONS = {
    "AKT", "AMPK", "ATP", "BMP", "DNA", "EGFR", "ER", "ERK", "FGFR", "GTP", "JAK", "KRAS", "MAPK",
    "MHC", "MYC", "NFKB", "RAS", "RHO", "RNA", "RRNA", "TCA", "TCR", "TGF", "TLR", "TNF",
    "TNFA", "TRNA", "UV", "VEGF", "WNT",
}  # fmt: skip
SPELT = {"DN": "down", "MRNA": "mRNA", "MTORC1": "mTORC1", "MTOR": "mTOR", "P53": "p53"}
HAS_DIGIT = re.compile(r"\d")


def readable_set(name: str) -> str:
    """Write a gene set's name as words.

    Names in capitals, as MSigDB has them, become small, but for abbreviations.
    """
    words = readable(name.removeprefix("HALLMARK_"))
    if not words.isupper():
        return words
    return " ".join(
        SPELT.get(word, word if word in ABBREVIATIONS or HAS_DIGIT.search(word) else word.lower())
        for word in words.split()
    )


SETTINGS = {"raw_enabled": False, "file_insertion_enabled": False}
# as Snakemake's own report renders captions, but for names that are not defined
CAPTIONS = jinja2.Environment(
    trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
)


def read_caption(path: str | Path, options: Mapping[str, Any]) -> str:
    """Read a caption as plain text, without line breaks.

    Parameters
    ----------
    path
        reStructuredText that is a Jinja template of ``snakemake.params.options``.
    options
        Options of the figure.
    """
    tree = docutils.core.publish_doctree(_rendered(path, options), settings_overrides=SETTINGS)
    return " ".join(tree.astext().split())


def caption_as_html(path: str | Path, options: Mapping[str, Any]) -> str:
    """Read a caption as HTML, see :func:`read_caption`."""
    return docutils.core.publish_parts(
        _rendered(path, options), writer="html5", settings_overrides=SETTINGS
    )["body"]


def _rendered(path: str | Path, options: Mapping[str, Any]) -> str:
    job = SimpleNamespace(params=SimpleNamespace(options=options))
    template = CAPTIONS.from_string(Path(path).read_text(encoding="utf-8"))
    return template.render(snakemake=job)
