"""Each block of configuration in docs/own_screen.md, run on a small file of that convention."""

import re

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from samsvae.config.configuration import merge, validate
from samsvae.inspection.screen import inspect_screen
from samsvae.screen.canonical import read_screen
from samsvae.sources import own_settings
from samsvae.sources.h5ad import write_h5ad_screen
from samsvae.sources.h5ad_source import H5adSource
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
PAGE = (ROOT / "docs/own_screen.md").read_text()
BLOCKS = {
    name: entry
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    for name, entry in yaml.safe_load(text).items()
    if "source" in entry  # a screen
}
DEFAULTS = yaml.safe_load((ROOT / "config.yaml").read_text())
GENES = ["KLF1", "MAP2K6", "CEBPA", "BAK1", *(f"GENE{i}" for i in range(16))]
# genes of each cell: controls, single genes, and a pair
DESIGN = [[]] * 40 + [["KLF1"]] * 30 + [["MAP2K6"]] * 30 + [["KLF1", "MAP2K6"]] * 20
LABELS = ["+".join(genes) or "control" for genes in DESIGN]
SINGLES = [genes[:1] for genes in DESIGN]
GUIDES = ["KLF1_g1", "KLF1_g2", "MAP2K6_g1", "NT_1", "NT_2"]
TARGETS = ["KLF1", "KLF1", "MAP2K6", "NT", "NT"]


def counts():
    return sparse.csr_matrix(1 + np.random.default_rng(0).poisson(8.0, (len(DESIGN), len(GENES))))


def bare():
    cells = pd.DataFrame(index=[f"ACGT{i:04d}-1" for i in range(len(DESIGN))])
    return anndata.AnnData(counts().astype(np.float32), cells, pd.DataFrame(index=GENES))


def ensembl(data):
    data.var_names = [f"ENSG{i:011d}" for i in range(data.n_vars)]
    return data


def guides_of(genes, at):
    return [f"{gene}_g{1 + at % 2 if gene == 'KLF1' else 1}" for gene in genes] or [
        f"NT_{1 + at % 2}"
    ]


def logs(data):
    data.layers["counts"] = data.X.copy()
    data.X = sparse.csr_matrix(np.log1p(data.X.toarray()))
    return data


def gears(folder):
    data = bare()
    data.obs["condition"] = pd.Categorical(
        ["ctrl" if not g else "+".join(g if len(g) > 1 else [*g, "ctrl"]) for g in DESIGN]
    )
    data.var["gene_name"] = GENES
    logs(ensembl(data)).write_h5ad(folder / "perturb_processed.h5ad")
    return LABELS, None


def scperturb(folder):
    data = bare()
    data.obs["perturbation"] = pd.Categorical(["_".join(genes) or "control" for genes in DESIGN])
    data.obs.loc[data.obs_names[-3:], "perturbation"] = np.nan
    data.write_h5ad(folder / "NormanWeissman2019_filtered.h5ad")
    return LABELS[:-3], None


def feature_reference(folder):
    rows = ["id,name,read,pattern,sequence,feature_type,target_gene_id,target_gene_name"]
    for guide, target in zip(GUIDES, TARGETS, strict=True):
        named = "Non-Targeting" if target == "NT" else target
        rows.append(f"{guide},{guide},R2,(BC)GTTT,ACGT,CRISPR Guide Capture,{named},{named}")
    (folder / "feature_reference.csv").write_text("\r\n".join(rows), "utf-8-sig")


def umis_of(design):
    rng = np.random.default_rng(1)
    ambient = rng.poisson(0.7, (len(design), len(GUIDES)))
    own = rng.poisson(40 * rng.lognormal(0, 0.3, ambient.shape))
    has = [[guide in guides_of(g, at) for guide in GUIDES] for at, g in enumerate(design)]
    return ambient + np.array(has) * own, np.array(has)


def cell_ranger(folder):
    feature_reference(folder)
    umis, _ = umis_of(DESIGN)
    umis[5] = [1, 0, 1, 0, 0]  # no guide in this cell
    data = anndata.AnnData(
        sparse.hstack([counts(), umis], format="csr").astype(np.float32),
        bare().obs,
        pd.DataFrame(
            {
                "gene_ids": [f"ENSG{i}" for i in range(len(GENES))] + GUIDES,
                "feature_types": ["Gene Expression"] * len(GENES)
                + ["CRISPR Guide Capture"] * len(GUIDES),
            },
            index=[*GENES[:-1], "GENE0", *GUIDES],  # a symbol that stands twice
        ),
    )
    data.write_h5ad(folder / "filtered_feature_bc_matrix.h5ad")
    return LABELS[:5] + LABELS[6:], {"KLF1_g1", "NT_1"}


def cell_ranger_calls(folder):
    feature_reference(folder)
    data = bare()
    calls = ["|".join(guides_of(genes, at)) for at, genes in enumerate(DESIGN)]
    data.obs["feature_call"] = [*calls[:-4], None, None, None, None]
    data.write_h5ad(folder / "with_calls.h5ad")
    return LABELS[:-4], {"KLF1_g1", "NT_1"}


def cellxgene(folder):
    targets = ["control" if target == "NT" else target for target in TARGETS]
    lines = [f"{guide}\t{target}" for guide, target in zip(GUIDES, targets, strict=True)]
    (folder / "guides.tsv").write_text("\n".join(lines))
    data = ensembl(bare())
    calls = [" || ".join(guides_of(genes, at)) for at, genes in enumerate(DESIGN)]
    data.obs["genetic_perturbation_id"] = pd.Categorical(["na", *calls[1:]])
    data.var["feature_name"] = pd.Categorical(GENES)
    data.raw = data.copy()
    data.X = sparse.csr_matrix(np.log1p(data.X.toarray()))
    data.write_h5ad(folder / "dataset.h5ad")
    return LABELS[1:], {"KLF1_g1", "NT_1"}


def replogle_essential(folder):
    data = ensembl(bare())
    genes = [g[0] if g else "non-targeting" for g in SINGLES]
    data.obs["gene"] = pd.Categorical(genes)
    data.obs["sgID_AB"] = [f"{g}_+_1.23-P1P2|{g}_-_9.23-P1P2" for g in genes]
    data.obs["gem_group"] = 1 + np.arange(data.n_obs) % 4
    data.var["gene_name"] = GENES
    data.X = data.X.toarray()
    data.write_h5ad(folder / "K562_essential_raw_singlecell_01.h5ad")
    return ["".join(g) or "control" for g in SINGLES], {"KLF1_+_1.23-P1P2|KLF1_-_9.23-P1P2"}


def pertpy(folder):
    rna = bare()
    rna.obs["gene_target"] = pd.Categorical(["".join(g) or "NT" for g in SINGLES])
    rna.obs["guide_ID"] = [
        f"{''.join(g)}g{1 + at % 2}" if g else f"NTg{at % 3}" for at, g in enumerate(SINGLES)
    ]
    rna.obs["replicate"] = pd.Categorical([f"rep{at % 3}" for at in range(rna.n_obs)])
    protein = anndata.AnnData(np.ones((rna.n_obs, 2)), rna.obs[[]], pd.DataFrame(index=["a", "b"]))
    mudata.MuData({"rna": rna, "adt": protein}).write_h5mu(folder / "papalexi_2021.h5mu")
    return ["".join(g) or "control" for g in SINGLES], {"KLF1g1", "NTg0"}


def igvf(folder):
    gene = ensembl(bare())
    gene.var["symbol"] = GENES
    umis, has = umis_of(DESIGN)
    targets = ["non-targeting" if target == "NT" else target for target in TARGETS]
    guide = anndata.AnnData(
        sparse.csr_matrix(umis).astype(np.float32),
        gene.obs[[]].copy(),
        pd.DataFrame(
            {"intended_target_name": targets, "targeting": [t != "NT" for t in TARGETS]},
            index=GUIDES,
        ),
    )
    guide.layers["guide_assignment"] = sparse.csr_matrix(has.astype(np.float32))
    mudata.MuData({"gene": gene, "guide": guide[::-1].copy()}).write_h5mu(folder / "mudata.h5mu")
    return LABELS, {"KLF1_g1", "NT_1"}


def high_moi(folder):
    targets = ["non-targeting" if target == "NT" else target for target in TARGETS]
    lines = [f"{guide}\t{target}" for guide, target in zip(GUIDES, targets, strict=True)]
    (folder / "guides.tsv").write_text("\n".join(lines))
    data = bare()
    data.obsm["guides"] = pd.DataFrame(umis_of(DESIGN)[0], data.obs_names, GUIDES)
    data.write_h5ad(folder / "high_moi.h5ad")
    return LABELS, {"KLF1_g1", "NT_1"}


CONVENTIONS = [
    gears, scperturb, cell_ranger, cell_ranger_calls, cellxgene, replogle_essential, pertpy, igvf,
    high_moi,
]  # fmt: skip


def test_every_block_of_the_page_has_a_file():
    assert set(BLOCKS) == {make.__name__ for make in CONVENTIONS}


@pytest.mark.parametrize("make", CONVENTIONS, ids=lambda make: make.__name__)
def test_the_block_reads_a_file_of_that_convention(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected, guides = make(tmp_path)
    own = {"screen": "own", "split": {"kind": "random"}, "models": ["additive"]}
    user = {"screens": {"own": BLOCKS[make.__name__]}, "experiments": {"own": own}}
    settings = own_settings(validate(merge(DEFAULTS, user))["screens"]["own"])
    write_h5ad_screen(H5adSource(**settings), "{}", tmp_path / "screen.h5ad")
    screen = read_screen(tmp_path / "screen.h5ad")
    assert list(screen.obs["perturbation"]) == expected
    assert screen.n_vars == len(GENES)
    assert {"KLF1", "BAK1"} <= set(screen.var_names)
    rows = [int(name[4:8]) for name in screen.obs_names]
    np.testing.assert_array_equal(screen.X.toarray(), counts().toarray()[rows])
    assert (guides is not None) == ("guide" in screen.obs)
    if guides is not None:
        assert guides <= set(screen.uns["guides"]["guide"])
        assert set(screen.uns["guides"]["target"]) == {"control", *TARGETS[1:3]}
    assert inspect_screen(settings, {}).errors == []
