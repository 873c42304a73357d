import pytest
import yaml

from samsvae.config.configuration import merge, validate
from samsvae.runtime.errors import InputError
from samsvae.runtime.preflight import check_experiment
from tests.conftest import ROOT

DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())


def check(size=5, copy="original", **screen):
    user = {
        "screens": {"own": {"source": "norman", "copy": copy, **screen}},
        "downloads": {f"norman_{copy}": {"size": size}},
        "experiments": {
            "own": {"screen": "own", "split": {"kind": "random"}, "models": ["additive"]}
        },
    }
    check_experiment(validate(merge(DEFAULTS, user)), "own")


def test_a_file_that_is_still_to_be_downloaded_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check()


def test_a_users_own_file_must_be_there_and_of_the_published_size(tmp_path):
    own = tmp_path / "own.h5ad"
    with pytest.raises(InputError, match=r"own\.h5ad: no such file.*null to download it"):
        check(path=str(own))
    own.write_bytes(b"1234")
    with pytest.raises(InputError, match="it has 4 bytes, not the published 5"):
        check(path=str(own))
    check(path=str(own), size=4)


def test_a_list_of_genes_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"genes\.txt: no such file"):
        check(copy="scperturb", genes="genes.txt")


def test_a_cut_file_among_the_downloads_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "downloads"
    folder.mkdir(parents=True)
    (folder / "Norman_2019.h5ad").write_bytes(b"123")
    with pytest.raises(InputError, match=r"Norman_2019\.h5ad: not the published"):
        check()
