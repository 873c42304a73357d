"""Print the findings of checks, and fail if a screen cannot be used."""

from pathlib import Path
from typing import Any

from samsvae.inspection.evidence import ERROR
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_table
from samsvae.runtime.script import run_job


def main(snakemake: Any) -> None:
    """Run the rule."""
    unusable = []
    for text, findings in zip(snakemake.input.texts, snakemake.input.findings, strict=True):
        print(f"\n{Path(text).read_text(encoding='utf-8')}", flush=True)
        if (read_table(findings)["severity"] == ERROR).any():
            unusable.append(Path(text).stem)
    if unusable:
        raise InputError(f"Screens that cannot be used: {', '.join(unusable)}; see above.")


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
