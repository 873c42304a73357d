"""What jobs ask of a cluster: every rule says it, and a job that failed asks for more."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from samsvae.report.sections import SHOWN_FIGURES
from tests.conftest import ROOT
from tests.workflow.conftest import TINY_CONFIG, Project, copy_project

RULE = re.compile(
    r"(?m)^(?:use rule (?P<base>\w+) as (?P<derived>\w+) with|rule (?P<name>\w+)):\n(?P<body>(?:    .*\n|\n)+)"
)
SLURM = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())

RETRIED = """
include: "{resources}"

rule needy:
    output: "enough.txt"
    input: "input.txt"
    resources: mem_mb=growing(100, per_input=10), runtime=growing(5)
    retries: 2
    run:
        print("asked for", resources.mem_mb, resources.runtime, file=open("asked.txt", "a"))
        assert resources.mem_mb > 250
        open(output[0], "w").close()
"""


def rules():
    text = "".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    return {match["name"] or match["derived"]: match for match in RULE.finditer(text)}


def numbered_rules():
    """List the rules that are defined in a loop, by their common name."""
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    return set(re.findall(r'_\{number \+ 1\}" if number else "(\w+)"', text))


def local_rules():
    text = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    blocks = re.findall(r"(?m)^localrules:\n((?:    \w+,\n)+)", text)
    return {name for block in blocks for name in re.findall(r"\w+", block)}


@pytest.mark.parametrize("name", sorted(set(rules()) - local_rules()))
def test_every_job_of_a_cluster_has_needs_a_log_and_a_benchmark(name):
    found = rules()
    body = found[name]["body"]
    if found[name]["derived"] is None:
        for needed in ("mem_mb=growing(", "runtime=growing(", "    log:\n", "    benchmark:\n"):
            assert needed in body
    elif "    output:\n" in body and "    log:\n" in body:
        assert "    benchmark:\n" in body
    assert "shell:" not in body


def test_every_script_has_the_digest_of_its_code_but_what_is_fetched_from_elsewhere():
    without = {
        name
        for name, match in rules().items()
        if "    script:\n" in match["body"]
        and not re.search(r"code=uses|\*\*collecting", match["body"])
    }
    assert without == {"download", "verify_file"}


def test_groups_name_rules_that_there_are():
    grouped = dict(entry.split("=") for entry in SLURM["groups"])
    modules = {figure.module for figure in SHOWN_FIGURES.values()}
    drawing = {f"draw_{module}" for module in modules}
    assert drawing <= set(grouped)
    assert "predict_baselines" in numbered_rules()
    assert set(grouped) <= set(rules()) | numbered_rules() | drawing
    sizes = dict(entry.split("=") for entry in SLURM["group-components"])
    assert set(sizes) <= set(grouped.values())


@pytest.mark.parametrize("name", ["tiny", "config.yaml", "config/norman_smoke.yaml"])
def test_the_jobs_of_a_cluster_can_be_grouped(name, tmp_path):
    """A job between two jobs of one group must be in that group, or Snakemake plans nothing."""
    config = TINY_CONFIG if name == "tiny" else yaml.safe_load((ROOT / name).read_text())
    project = Project(copy_project(tmp_path), config)
    planned = project.planned("--workflow-profile", "profiles/slurm")
    assert planned["compare_models"] == len(config["experiments"])


def test_the_page_on_clusters_lists_all_rules_that_request_a_gpu():
    requesting = {name for name, match in rules().items() if "        gpu=1,\n" in match["body"]}
    requesting |= {name for name, match in rules().items() if match["base"] in requesting}
    requesting |= {"train_seeds", "evaluate_seeds"} & numbered_rules()
    listed = re.findall(r"(\w+):gpu=0", (ROOT / "docs/cluster.md").read_text())
    assert set(listed) == requesting
    assert len(listed) == len(set(listed))


def test_a_group_adds_up_numbers_alone():
    """Snakemake's own need of disk depends on inputs, which a group may only be about to make."""
    assert isinstance(SLURM["default-resources"]["disk_mb"], int)


def test_resources_are_no_part_of_the_configuration():
    schema = (ROOT / "workflow/schemas/config.schema.yaml").read_text()
    assert not re.search(r"mem_mb|runtime:|threads:", schema)


def test_a_job_that_failed_asks_for_more(tmp_path):
    resources = ROOT / "workflow/rules/resources.smk"
    (tmp_path / "Snakefile").write_text(RETRIED.format(resources=resources))
    (tmp_path / "input.txt").write_bytes(bytes(3 * 2**20))
    subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--quiet", "all"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    asked = Path(tmp_path / "asked.txt").read_text().splitlines()
    assert asked == ["asked for 130 5", "asked for 260 10"]
