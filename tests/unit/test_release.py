"""The version of a release, in every place where it is written."""

import datetime
import re

import pytest
import yaml

import samsvae
from tests.conftest import ROOT
from tests.unit.test_package import PROJECT

# of Keep a Changelog 1.1.0
KINDS_OF_CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
RELEASE = re.compile(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)")
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def sections(text, mark):
    """The text below each heading of a level, by heading."""
    parts = re.split(rf"^{mark} (.+)\n", text, flags=re.MULTILINE)[1:]
    assert len(set(parts[::2])) == len(parts[::2])
    return dict(zip(parts[::2], parts[1::2], strict=True))


def changes():
    return sections((ROOT / "CHANGELOG.md").read_text(), "##")


def releases():
    """Number and date of each release in the changelog, in its order."""
    found = [RELEASE.fullmatch(heading) for heading in changes() if heading != "Unreleased"]
    assert all(found)
    return [
        (tuple(map(int, one.groups()[:3])), datetime.date.fromisoformat(one[4])) for one in found
    ]


def test_the_package_reads_its_version_from_the_library():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT


def test_the_last_release_is_the_version():
    number, date = releases()[0]
    assert samsvae.__version__ == ".".join(map(str, number))
    assert CITATION["version"] == samsvae.__version__
    assert CITATION["date-released"] == date


def test_releases_are_listed_newest_first():
    numbers, dates = zip(*releases(), strict=True)
    assert list(numbers) == sorted(set(numbers), reverse=True)
    assert list(dates) == sorted(dates, reverse=True)
    assert next(iter(changes())) == "Unreleased"


@pytest.mark.parametrize("release", changes())
def test_every_change_stands_under_its_kind(release):
    kinds = sections(changes()[release], "###")
    assert set(kinds) <= KINDS_OF_CHANGES
    assert all(re.search(r"^- \S", text, re.MULTILINE) for text in kinds.values())
    before = changes()[release].partition("###")[0]
    assert not re.search(r"^- ", before, re.MULTILINE)
    assert kinds or release == "Unreleased"


def test_the_documentation_names_the_tag_of_the_last_release():
    text = (ROOT / "docs/workflow.md").read_text()
    tags = re.findall(r"""(?:@|tag[= ]["']?)(v\d[\w.]*)""", text)
    assert len(tags) == 3
    assert set(tags) == {f"v{samsvae.__version__}"}


def test_the_citation_has_what_its_format_requires():
    """The Citation File Format 1.2.0: required keys, their types, and no unknown key."""
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] in {"software", "dataset"}
    for key in ("message", "title", "abstract", "license", "version"):
        assert isinstance(CITATION[key], str)
        assert CITATION[key].strip()
    assert isinstance(CITATION["date-released"], datetime.date)
    assert set(CITATION) <= {
        "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi",
        "identifiers", "keywords", "license", "license-url", "message", "preferred-citation",
        "references", "repository", "repository-artifact", "repository-code", "title", "type",
        "url", "version",
    }  # fmt: skip
    keywords = CITATION["keywords"]
    assert len(set(keywords)) == len(keywords) > 0
    for work in (CITATION, CITATION["preferred-citation"]):
        assert work["authors"]
        for author in work["authors"]:
            # an entity has a name, a person the parts of a name
            assert set(author) in ({"name"}, {"family-names", "given-names"})
    assert {"type", "title", "authors"} <= set(CITATION["preferred-citation"])


def test_the_licence_is_one_everywhere():
    assert CITATION["license"] == PROJECT["license"]
    assert (ROOT / "LICENSE").read_text().startswith(f"{PROJECT['license']} License")
