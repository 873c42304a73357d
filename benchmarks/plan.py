"""How long Snakemake takes to plan a configuration, against a bare workflow of as many jobs.

``python -m benchmarks.plan --configfile config/norman.yaml`` prints JSON: jobs, seconds of the dry
run, and seconds_bare, those of a workflow of as many jobs that has one rule and nothing else.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BARE = """
rule all:
    input: expand("{{job}}.txt", job=range({jobs}))

rule one:
    output: "{{job}}.txt"
    shell: "touch {{output}}"
"""


def dry_run(arguments: list[str], folder: Path) -> tuple[int, float]:
    """Plan; give the number of jobs and the seconds that it took."""
    started = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
        check=False,
    )
    seconds = time.perf_counter() - started
    total = re.search(r"^total +(\d+)$", shown.stdout, re.MULTILINE)
    if shown.returncode or total is None:
        sys.exit(shown.stdout[-4000:])
    return int(total[1]), seconds


def main() -> None:
    """Read the options, plan, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configfile", type=Path, default=Path("config/norman.yaml"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        # elsewhere, so that results that are there do not make the plan shorter
        workflow = ["--snakefile", str(ROOT / "Snakefile"), "--directory", name]
        chosen = ["--configfile", str(arguments.configfile.resolve())]
        jobs, seconds = dry_run([*workflow, *chosen], ROOT)
        (Path(name) / "Snakefile").write_text(BARE.format(jobs=jobs - 1))
        _, seconds_bare = dry_run([], Path(name))
    print(json.dumps({"jobs": jobs, "seconds": seconds, "seconds_bare": seconds_bare}))


if __name__ == "__main__":
    main()
