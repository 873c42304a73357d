"""Captions of figures, reStructuredText in files of their own."""

from pathlib import Path

import docutils.core

SETTINGS = {"raw_enabled": False, "file_insertion_enabled": False}


def read_caption(path: str | Path) -> str:
    """Read a caption as plain text, without line breaks."""
    tree = docutils.core.publish_doctree(
        Path(path).read_text(encoding="utf-8"), settings_overrides=SETTINGS
    )
    return " ".join(tree.astext().split())


def caption_as_html(path: str | Path) -> str:
    """Read a caption as HTML."""
    return docutils.core.publish_parts(
        Path(path).read_text(encoding="utf-8"), writer="html5", settings_overrides=SETTINGS
    )["body"]
