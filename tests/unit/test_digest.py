"""Digests of code: what an edit reruns, and what it does not."""

import ast
import re
import shutil

import pytest

from samsvae.models import MODELS, model_class
from samsvae.runtime import digest
from samsvae.runtime.digest import LEFT_OUT, LEVELS, LIBRARY, LOGGERS, code_digest
from samsvae.sources import SIMULATORS
from tests.conftest import ROOT

SCRIPTS = ROOT / "workflow/scripts"
ALL_SCRIPTS = sorted(SCRIPTS.glob("*.py"))


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A copy of the scripts and their library, which digests then follow."""
    for path in ALL_SCRIPTS:
        shutil.copy(path, tmp_path)
    copy = tmp_path / "samsvae"
    shutil.copytree(SCRIPTS / "samsvae", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(digest, "LIBRARY", copy)
    return copy


def digests(library, *modules):
    return {p.stem: code_digest(p, *modules) for p in sorted(library.parent.glob("*.py"))}


def changed(library, edit, *modules):
    """Scripts whose digest an edit changes."""
    before = digests(library, *modules)
    edit()
    after = digests(library, *modules)
    return {script for script in before if before[script] != after[script]}


def add_statement(path):
    path.write_text(path.read_text() + "\nEDITED = 1\n")


def reworded(source):
    """Change comments, every docstring and every text of a log message; count what was changed."""
    replaced = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            replaced.append((node.value, '"""In other words."""'))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in LEVELS
            and getattr(node.func.value, "id", "") in LOGGERS
        ):
            texts = [a for a in node.args if isinstance(a, ast.Constant)]
            replaced += [(text, repr(f"otherwise: {text.value}")) for text in texts]
    lines = source.splitlines(keepends=True)
    for node, text in sorted(replaced, key=lambda pair: -pair[0].lineno):
        first, last = node.lineno - 1, node.end_lineno - 1
        start = lines[first].encode()[: node.col_offset].decode()
        end = lines[last].encode()[node.end_col_offset :].decode()
        lines[first : last + 1] = [f"{start}{text}{end}"]
    return "# another comment\n" + "".join(lines) + "\n\n# and one more\n", len(replaced)


def test_other_words_in_any_file_rerun_nothing(library):
    def reword_everything():
        total = 0
        for path in [*library.rglob("*.py"), *library.parent.glob("*.py")]:
            text, n = reworded(path.read_text())
            path.write_text(text)
            total += n
        assert total > 500

    every_model = [module for module, _ in MODELS.values()]
    assert changed(library, reword_everything, *every_model) == set()


@pytest.mark.parametrize(
    ("module", "reruns", "spares"),
    [
        ("inference/trainer.py", {"train_model"}, {"enrich_effects", "observe_effects", "split_cells"}),
        ("inference/objective.py", {"train_model"}, {"enrich_effects", "select_model", "draw_figures"}),
        ("models/networks.py", {"train_model"}, {"split_cells", "enrich_effects", "predict_baselines"}),
        ("biology/enrichment.py", {"enrich_effects", "tabulate_latents"}, {"train_model", "evaluate_run"}),
        ("screen/splits.py", {"split_cells"}, {"enrich_effects", "draw_figures", "simulate_screen"}),
        ("figures/style.py", {"draw_figures", "draw_perturbation"}, {"train_model", "tabulate_effects"}),
    ],
)  # fmt: skip
def test_a_statement_reruns_what_uses_it(library, module, reruns, spares):
    model = MODELS["cpa_vae"][0]
    edited = changed(library, lambda: add_statement(library / module), model)
    without_model = changed(library, lambda: add_statement(library / module))
    assert reruns <= edited
    assert not spares & without_model


def test_a_statement_of_a_script_reruns_that_script_alone(library):
    script = library.parent / "enrich_effects.py"
    assert changed(library, lambda: add_statement(script)) == {"enrich_effects"}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_runtime_and_the_configuration_rerun_nothing(library, name):
    path = library.joinpath(*name.split(".")[1:])
    files = [path.with_suffix(".py")] if path.with_suffix(".py").is_file() else [*path.glob("*.py")]
    assert files

    def edit():
        for file in files:
            add_statement(file)

    assert changed(library, edit) == set()


def test_the_runtime_imports_the_runtime_alone():
    """Otherwise a module could be reached through it and through nothing else."""
    plans_jobs = {"layout", "plan", "preflight"}  # no script's library imports these
    files = {file.stem: file for file in (LIBRARY / "runtime").glob("*.py")}
    assert plans_jobs < set(files)
    for name in set(files) - plans_jobs:
        text = files[name].read_text()
        imported = re.findall(r"^ *from (samsvae\.[\w.]+) import", text, re.MULTILINE)
        assert [one for one in imported if not digest._is_left_out(one)] == [], name
    importing = "|".join(plans_jobs)
    for file in [*ALL_SCRIPTS, *LIBRARY.rglob("*.py")]:
        if file.parent.name != "runtime":
            used = rf"^ *(from|import) samsvae\.runtime(\.| import )({importing})"
            assert not re.search(used, file.read_text(), re.MULTILINE), file


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('logger.info("%d genes", n)', 'logger.info("kept %d genes", n)'),
        ('logger.info("%d genes", n)', 'logger.info("%d of %d genes", n, total)'),
        ('logger.info("%d genes", n)', ""),
        ('logger.info("%s", ", ".join(x))', 'logging.warning("left: %s", "; ".join(x))'),
        ('logger.info(f"{n} genes")', 'logger.info(f"{total} genes", exc_info=True)'),
        ("x = 1  # why", "x = 1"),
        ("x = (1,\n    2)", "x = (1, 2)"),
        ('"""A text."""', '"""Another."""'),
        ("if TYPE_CHECKING:\n    import a", "if TYPE_CHECKING:\n    import b"),
    ],
)
def test_what_computes_nothing_does_not_count(tmp_path, before, after):
    script = tmp_path / "script.py"
    script.write_text(f"y = 0\n{before}\n")
    first = code_digest(script)
    script.write_text(f"y = 0\n{after}\n")
    assert code_digest(script) == first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 2"),
        ('x = "a"', 'x = "b"'),
        ('logger.info("%s", f(1))', 'logger.info("%s", f(2))'),
        ('logger.info("%s", f(1))', ""),
        ('send.info("a")', 'send.info("b")'),
        ('x = logger.info("a")', 'x = logger.info("b")'),
        ('raise ValueError("a")', 'raise ValueError("b")'),
        ("if x:\n    y = 1\nz = 2", "if x:\n    y = 1\n    z = 2"),
    ],
)
def test_what_may_compute_something_counts(tmp_path, before, after):
    script = tmp_path / "script.py"
    script.write_text(before)
    first = code_digest(script)
    script.write_text(after)
    assert code_digest(script) != first


def test_imports_are_followed_wherever_they_stand(tmp_path, monkeypatch):
    library = tmp_path / "samsvae"
    library.mkdir()
    (library / "__init__.py").write_text("")
    (library / "deep.py").write_text("X = 1\n")
    (library / "used.py").write_text("def f():\n    from samsvae.deep import X\n    return X\n")
    (library / "named.py").write_text("Z = 1\n")
    (library / "other.py").write_text("Y = 1\n")
    script = tmp_path / "script.py"
    script.write_text("from samsvae import used\n")
    monkeypatch.setattr(digest, "LIBRARY", library)
    before, with_named = code_digest(script), code_digest(script, "samsvae.named")
    for module in ("other", "named"):
        (library / f"{module}.py").write_text("Y = 2\n")
    assert code_digest(script) == before
    assert code_digest(script, "samsvae.named") != with_named
    (library / "deep.py").write_text("X = 2\n")
    assert code_digest(script) != before


def test_what_is_named_counts_with_its_class(library):
    script = library.parent / "write_report.py"
    named = "samsvae.config.models"
    alone, before = code_digest(script), code_digest(script, named)
    add_statement(library / "config/models.py")
    assert code_digest(script) == alone
    assert code_digest(script, named) != before
    module = MODELS["sams_vae"][0]
    assert code_digest(script, f"{module}:A") != code_digest(script, f"{module}:B")


def test_a_digest_depends_on_no_place(library, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "zz.py"
    shutil.copy(library.parent / "train_model.py", elsewhere)
    assert code_digest(elsewhere) == code_digest(library.parent / "train_model.py")


@pytest.mark.parametrize("script", ["train_model", "evaluate_run", "sample_cells"])
def test_a_model_depends_on_the_module_of_its_own_kind_alone(library, script):
    def of_kinds():
        path = library.parent / f"{script}.py"
        return {kind: code_digest(path, module) for kind, (module, _) in MODELS.items()}

    def changed_by_editing(module):
        before = of_kinds()
        add_statement(library / module)
        return {kind for kind, value in of_kinds().items() if value != before[kind]}

    assert changed_by_editing("models/svae_plus.py") == {"svae_plus"}
    assert changed_by_editing("models/cpa_vae.py") == {"cpa_vae"}
    assert changed_by_editing("models/sams_vae.py") == {"sams_vae", "sams_vae_beta_bernoulli"}
    assert changed_by_editing("models/base.py") == set(MODELS)


@pytest.mark.parametrize(
    ("module", "reruns"),
    [
        ("simulated", set(SIMULATORS)),
        ("norman", set()),
    ],
)
def test_a_simulated_screen_depends_on_the_simulators_alone(library, module, reruns):
    def of_sources():
        path = library.parent / "simulate_screen.py"
        return {name: code_digest(path, module) for name, (module, *_) in SIMULATORS.items()}

    before = of_sources()
    add_statement(library / f"sources/{module}.py")
    assert {name for name, value in of_sources().items() if value != before[name]} == reruns


def test_a_module_that_is_imported_by_name_exists():
    for kind, (module, _) in MODELS.items():
        assert model_class(kind).__module__ == module
