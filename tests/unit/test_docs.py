"""The documentation against what it describes."""

import ast
import functools
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import anndata
import pytest
import yaml

import samsvae
from samsvae.biology.applied import ScreenModel
from samsvae.config.configuration import merge, validate
from samsvae.config.sections import json_schema
from tests.conftest import ROOT

BENCHMARKS = ROOT / "benchmarks"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PAGES.append(BENCHMARKS / "README.md")
LIBRARY = ROOT / "workflow" / "scripts" / "samsvae"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors, self.words = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given.get("id"), given.get("name")}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.slow
def test_every_link_inside_the_site_leads_somewhere(site):
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target) or path.name == "404.html":
                continue
            file = (path.parent / target).resolve() if target else path
            if not file.exists() or (
                anchor and file in pages and anchor not in pages[file].anchors
            ):
                broken.append((path.name, link))
    assert broken == []


@pytest.mark.slow
def test_the_site_asks_the_network_for_nothing(site):
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r'<(?:script|img|link)[^>]+(?:src|href)="(?:https?:)?//', text), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_link_of_a_page_read_in_the_repository_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


@pytest.mark.slow
def test_the_reference_holds_every_key_of_the_configuration_and_its_default(site):
    page = (site / "configuration.html").read_text()
    shown = set(re.findall(r"<td><code>([\w-]+)</code></td>", page))
    shown |= set(re.findall(r'<h2 id="(\w+)"', page))
    assert set(keys(json_schema())) - {"kind", "source"} <= shown
    assert re.search(r"<code>validate_every</code></td>.*?<td><code>250</code>", page, re.DOTALL)


def keys(schema):
    for name, value in schema.get("properties", {}).items():
        if "const" not in value:
            yield name
        yield from keys(value)
    for definition in schema.get("$defs", {}).values():
        yield from keys(definition)


def test_the_messages_explained_are_those_of_the_code():
    said = " ".join(strings())
    said += "Directory cannot be locked"  # Snakemake's own
    quoted = re.findall(r"^> (.+)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 10
    assert [one for one in quoted if one not in said] == []


@functools.cache
def strings():
    """Every text of the library, formatted values left out."""
    found = []
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [v.value for v in node.values if isinstance(v, ast.Constant)]
                found.append("".join(map(str, parts)))
    return found


def blocks(page, language):
    return re.findall(
        rf"```{language}[^\n]*\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL
    )


@pytest.mark.parametrize("page", ["howto.md", "tutorial_papalexi.md"])
def test_every_configuration_of_a_recipe_is_valid(page):
    defaults = yaml.safe_load((ROOT / "config.yaml").read_text())
    given = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    assert given
    for user in given:
        complete = validate(merge(defaults, user))
        assert set(user) <= set(complete)


def test_the_python_of_the_recipes_is_python_of_this_library():
    for block in blocks("howto.md", "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = {"samsvae": samsvae, "model": ScreenModel, "anndata": anndata}.get(
                    node.value.id
                )
                assert owner is None or hasattr(owner, node.attr), node.attr


def commands():
    """Each line of each shell block of each page."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            text = block.replace("\\\n", " ")
            yield from ((page.name, line.split("#")[0].strip()) for line in text.splitlines())


def test_every_command_of_the_documentation_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    rules = {
        name
        for path in [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
        for name in re.findall(r"^(?:use )?rule (?:\w+ as )?(\w+)", path.read_text(), re.MULTILINE)
    }
    checked = 0
    for page, command in commands():
        if command:
            check(page, command.split(), targets, rules)
            checked += 1
    assert checked > 10


def check(page, words, targets, rules):
    match words:
        case ["make", *rest]:
            named = {word for word in rest if "=" not in word}
            assert named <= targets, (page, words)
            for word in rest:
                if word.startswith("CONFIG=") and "my_screen" not in word:
                    assert (ROOT / word.removeprefix("CONFIG=")).is_file(), (page, words)
        case ["cp", source, _]:
            assert (ROOT / source).is_file(), (page, words)
        case [".venv/bin/python", "-m", "pdb", script, *_]:
            assert (ROOT / script).is_file(), (page, words)
        case ["python" | ".venv/bin/python", "-m", module, *_]:
            assert importlib.util.find_spec(module), (page, words)
        case ["snakemake" | ".venv/bin/snakemake", *rest]:
            for word in rest:
                if re.fullmatch(r"[a-z_]+", word):
                    assert word in rules | {"all"}, (page, words)
        case [".venv/bin/pip", "install", *packages]:
            lock = (ROOT / "envs/requirements-dev.txt").read_text()
            assert all(f"{package}==" in lock for package in packages), (page, words)
        case ["pip", "install", address]:
            assert re.fullmatch(r'"git\+https://\S+@v\d+\.\d+\.\d+"', address), (page, words)
        case ["cd" | "cell-eval" | "snakedeploy", *_]:
            pass
        case _:
            pytest.fail(f"{page}: nothing checks the command {' '.join(words)!r}")


def test_every_configuration_that_is_shipped_is_listed():
    listed = (ROOT / "config/README.md").read_text()
    shipped = subprocess.run(
        ["git", "ls-files", "config/*.yaml"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()  # and not those of a user's own
    if not shipped:
        pytest.skip("only git knows which configurations are shipped")
    assert [path for path in shipped if Path(path).name not in listed] == []


def test_every_benchmark_is_described_with_its_command():
    text = (BENCHMARKS / "README.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+)$", text, re.MULTILINE)
    named = [name for names, _ in rows for name in re.findall(r"\w+", names)]
    assert sorted(named) == sorted(path.stem for path in BENCHMARKS.glob("[!_]*.py"))
    for names, row in rows:
        commands = re.findall(r"python (?:-m benchmarks\.|benchmarks/)(\w+)", row)
        assert commands == [names.strip("`")] or "–" in row, names


@pytest.mark.slow
def test_snakemake_lists_what_every_rule_gives():
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--list"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rules = [line for line in done.stdout.splitlines() if re.match(r"[a-z_]+( |$)", line)]
    assert len(rules) > 40
    assert [rule for rule in rules if not re.fullmatch(r"[a-z_]+ \(.+\)", rule)] == []
