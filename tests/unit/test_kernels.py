"""The fused Gamma-Poisson log-probability against its definition in double precision."""

import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.func import functional_call, stack_module_state, vmap

from samsvae.kernels import SMALLEST_MEAN, gamma_poisson_numba, has_triton
from samsvae.kernels.gamma_poisson import log_prob, reference_log_prob

NAMES = ("concentration", "hidden", "weight", "bias")
EXTREMES = (1e-3, 1e6)  # of the concentration: far over-dispersed, and Poisson but for rounding


def problem(seed=0, particles=(2,), cells=6, genes=300, n_hidden=5, largest=5000.0, spread=1.0):
    """Cells with common and rare genes, one count of which is very large."""
    torch.manual_seed(seed)
    counts = torch.poisson(torch.full((cells, genes), 2.0))
    counts[:1, :5] = largest
    concentration = torch.logspace(*np.log10(EXTREMES), genes)[torch.randperm(genes)]
    return [
        counts,
        counts.sum(1) + 1,
        concentration,
        spread * torch.randn(*particles, cells, n_hidden),
        torch.randn(genes, n_hidden),
        torch.randn(genes),
    ]


def with_gradients(function, inputs, cell_weight):
    """The value, and the gradients of its weighted sum."""
    inputs = [each.detach() for each in inputs]
    wanted = [each.requires_grad_() for each in inputs[2:]]
    value = function(*inputs)
    return value.detach(), *torch.autograd.grad((value * cell_weight).sum(), wanted)


def exact(inputs, cell_weight):
    """In double precision, with the sizes of the numbers that cancel on the way there."""
    inputs = [each.double() for each in inputs]
    found = with_gradients(reference_log_prob, inputs, cell_weight.double())
    counts, size, c, hidden, weight, bias = inputs
    logits = hidden @ weight.T + bias
    proportion = torch.softmax(logits, -1)
    mean = size[:, None] * proportion + SMALLEST_MEAN
    of_counts = torch.lgamma(counts + c) - torch.lgamma(c) - counts * c.log()
    of_decoder = counts * mean.log() - (counts + c) * torch.log1p(mean / c)
    by_log = (counts + mean) * c / (mean + c)
    by_logit = by_log + proportion * by_log.sum(-1, keepdim=True)
    by_c = counts / c + torch.log1p(mean / c) + (counts + mean) / (c + mean)
    size_of_logits = cell_weight.double().abs() * (1 + logits.abs().max())
    rows, rows_by_c = (
        (each * (size_of_logits * torch.ones_like(found[0]))[..., None]).reshape(-1, len(c))
        for each in (by_logit, by_c)
    )
    return found, [
        (of_counts.abs() + torch.lgamma(counts + 1) + of_decoder.abs()).sum(-1),
        rows_by_c.sum(0),
        (rows @ weight.abs()).view(hidden.shape),
        rows.T @ hidden.abs().reshape(len(rows), -1),
        rows.sum(0),
    ]


def assert_accurate(found, inputs, cell_weight, tolerance=5e-7):
    """Within the rounding of single precision."""
    for name, ours, truth, scale in zip(
        ("value", *NAMES), found, *exact(inputs, cell_weight), strict=True
    ):
        assert ours.shape == truth.shape
        error = (ours.cpu().double() - truth).abs()
        assert bool((error <= tolerance * (scale + 1)).all()), name


def test_the_definition_is_scipys_negative_binomial():
    counts, size, c, hidden, weight, bias = (each.double() for each in problem(largest=200.0))
    mean = size[:, None] * torch.softmax(hidden @ weight.T + bias, -1) + SMALLEST_MEAN
    ours = reference_log_prob(counts, size, c, hidden, weight, bias)
    theirs = stats.nbinom.logpmf(counts.numpy(), c.numpy(), (c / (c + mean)).numpy()).sum(-1)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2e-7)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.integers(1, 9),
    st.integers(1, 70),
    st.integers(1, 6),
    st.sampled_from([0.0, 63.0, 64.0, 5000.0]),
    st.sampled_from([0.1, 1.0, 10.0]),
    st.booleans(),
)
def test_value_and_gradients_are_the_definitions(
    seed, particles, cells, genes, n_hidden, largest, spread, is_constant
):
    """With one weight for all cells, as in an evidence bound, and with weights of their own."""
    inputs = problem(seed, particles, cells, genes, n_hidden, largest, spread)
    cell_weight = torch.tensor(0.7) if is_constant else torch.randn(*particles, cells)
    found = with_gradients(log_prob, inputs, cell_weight)
    assert_accurate(found, inputs, cell_weight)
    with torch.no_grad():
        alone = log_prob(*inputs)
    assert_accurate([alone, *found[1:]], inputs, cell_weight)


@pytest.mark.parametrize("rows", [2, 3, 10])
@pytest.mark.parametrize("is_constant", [True, False])
def test_blocks_that_do_not_fit_change_nothing_but_rounding(rows, is_constant, monkeypatch):
    inputs = problem(particles=(3,), cells=7)
    cell_weight = torch.tensor(0.7) if is_constant else torch.randn(3, 7)
    monkeypatch.setattr(gamma_poisson_numba, "ROWS_AT_A_TIME", rows)
    assert_accurate(with_gradients(log_prob, inputs, cell_weight), inputs, cell_weight)
    with torch.no_grad():
        whole = log_prob(*inputs)
    assert_accurate(
        [whole, *with_gradients(log_prob, inputs, cell_weight)[1:]], inputs, cell_weight
    )


@pytest.mark.parametrize("sizes", [{"cells": 0}, {"genes": 0}, {"particles": (0,)}])
def test_nothing_has_the_log_probability_of_nothing(sizes):
    inputs = problem(**sizes)
    value, *gradients = with_gradients(log_prob, inputs, torch.tensor(1.0))
    assert torch.equal(value, torch.zeros(value.shape))
    assert value.shape == inputs[3].shape[:-1]
    assert all(bool((each == 0).all()) for each in gradients)


def test_a_gradient_can_be_taken_twice_from_one_value():
    inputs = problem()
    wanted = [each.requires_grad_() for each in inputs[2:]]
    value = log_prob(*inputs)
    first, second = (torch.autograd.grad(value.sum(), wanted, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


class Decoder(torch.nn.Module):
    """A decoder's last layer with its likelihood."""

    def __init__(self, genes=40, n_hidden=5):
        super().__init__()
        self.log_c = torch.nn.Parameter(torch.randn(genes))
        self.head = torch.nn.Linear(n_hidden, genes)

    def forward(self, counts, hidden):
        inputs = (counts, counts.sum(-1) + 1, self.log_c.exp(), hidden)
        return log_prob(*inputs, self.head.weight, self.head.bias)


@pytest.mark.parametrize("share_counts", [False, True])
def test_replicates_have_the_values_and_gradients_of_each_alone(share_counts, monkeypatch):
    torch.manual_seed(0)
    models = [Decoder() for _ in range(3)]
    counts, hidden = torch.poisson(torch.full((3, 6, 40), 2.0)), torch.randn(3, 2, 6, 5)
    counts = counts[:1].expand_as(counts) if share_counts else counts
    computed, kernel = [], gamma_poisson_numba.log_prob_and_gradients
    monkeypatch.setattr(
        gamma_poisson_numba,
        "log_prob_and_gradients",
        lambda *inputs: computed.append(len(inputs[0])) or kernel(*inputs),
    )
    parameters, _ = stack_module_state(models)

    def loss(parameters, counts, hidden):
        return functional_call(models[0], parameters, (counts, hidden)).sum()

    in_dims = (0, None if share_counts else 0, 0)
    losses = vmap(loss, in_dims)(parameters, counts[0] if share_counts else counts, hidden)
    (losses.sum() * 0.7).backward()
    assert computed == [3]  # all at once, and not again in the backward pass
    for index, model in enumerate(models):
        alone = model(counts[index], hidden[index]).sum()
        (alone * 0.7).backward()
        torch.testing.assert_close(losses[index], alone)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameters[name].grad[index], parameter.grad)


def test_results_do_not_depend_on_the_number_of_threads():
    before, results = torch.get_num_threads(), []
    inputs, cell_weight = problem(n_hidden=40), torch.randn(2, 6)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(with_gradients(log_prob, inputs, cell_weight))
            with torch.no_grad():
                results[-1] = (*results[-1], log_prob(*inputs))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_non_finite_logits_give_non_finite_results_in_their_row_alone():
    inputs = problem()
    inputs[3][0, 1, 2], inputs[3][1, 2, 0] = torch.nan, torch.inf
    value, _, by_hidden, *_ = with_gradients(log_prob, inputs, torch.tensor(1.0))
    assert value.isfinite().logical_not().nonzero().tolist() == [[0, 1], [1, 2]]
    assert torch.equal(by_hidden.isfinite().all(-1), value.isfinite())
    with torch.no_grad():
        assert torch.equal(log_prob(*inputs).isfinite(), value.isfinite())


def test_counts_near_the_poisson_limit_keep_their_accuracy():
    inputs = problem(cells=50, genes=400, largest=3.0)
    inputs[2] = torch.full((400,), EXTREMES[1])
    with torch.no_grad():
        ours = log_prob(*inputs)
    torch.testing.assert_close(
        ours.double(), reference_log_prob(*(x.double() for x in inputs)), rtol=2e-6, atol=0
    )


def test_large_counts_have_the_term_of_the_table_and_its_slope():
    counts, cell_weight = torch.randint(0, 300, (2, 6, 5)).double(), torch.randn(2, 6).double()
    c = torch.logspace(-2, 4, 10).double().view(2, 5).requires_grad_()
    x, of_cell = counts, c[:, None]
    own = (
        torch.lgamma(x + of_cell) - torch.lgamma(of_cell) - x * of_cell.log() - torch.lgamma(x + 1)
    )
    (slope,) = torch.autograd.grad((cell_weight * own.sum(-1)).sum(), c)
    tabulated = gamma_poisson_numba._counts_term(counts, c.detach(), cell_weight)
    torch.testing.assert_close(tabulated[0], own.sum(-1).detach(), rtol=1e-7, atol=0)
    torch.testing.assert_close(tabulated[1], slope, rtol=1e-6, atol=1e-9)


def test_many_large_counts_are_summed_in_the_same_order_by_any_number_of_threads():
    counts = torch.randint(64, 300, (2, 200, 150)).float()
    given = counts, torch.rand(2, 150) + 0.5, torch.rand(2, 200)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2, 2):
        torch.set_num_threads(number)
        found.append(gamma_poisson_numba._counts_term(*given))
    torch.set_num_threads(threads)
    for term, by_c in found[1:]:
        assert torch.equal(term, found[0][0])
        assert torch.equal(by_c, found[0][1])


def test_the_compiled_exponential_and_logarithm_are_numpys():
    y = np.exp(np.linspace(-30, 15, 2000)).astype(np.float32)
    zero, one = np.float32(0), np.float32(1)
    logs = [gamma_poisson_numba._log_of_sum(zero, each) for each in y]
    np.testing.assert_allclose(logs, np.log(y, dtype=np.float64), rtol=3e-7, atol=1e-7)
    shifted = [gamma_poisson_numba._log_of_sum(one, each) for each in y]
    np.testing.assert_allclose(shifted, np.log1p(y, dtype=np.float64), rtol=3e-7, atol=0)
    negative = -y[y < 80]
    powers = [gamma_poisson_numba._exp(each) for each in negative]
    np.testing.assert_allclose(powers, np.exp(negative, dtype=np.float64), rtol=2e-7, atol=0)


def test_without_triton_plain_operations_are_used_and_the_log_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "samsvae.kernels.random_triton", raising=False)
    with caplog.at_level("INFO"):
        assert not has_triton.__wrapped__(torch.device("cuda"))
    assert re.search(r"Triton.* cuda\b.*PyTorch", caplog.text)
    assert not has_triton(torch.device("cpu"))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([(), (1,), (3,), (2, 2)]),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 3),
    st.booleans(),
)
def test_offsets_of_some_genes_are_those_of_the_definition(
    seed, particles, cells, genes, targets, is_constant
):
    """Value and gradients, those of the offsets included; a gene may occur twice."""
    inputs = problem(seed, particles, cells, genes, 3, largest=60.0)
    inputs[2] = torch.linspace(0.5, 5, genes)
    own = torch.randint(genes, (cells, targets))
    offsets = torch.randn(*particles, cells, targets)
    cell_weight = torch.tensor(0.7) if is_constant else torch.randn(*particles, cells)

    def of(function, *given):
        *others, shifts = (each.detach().clone() for each in given)
        wanted = [each.requires_grad_() for each in (*others[2:], shifts)]
        value = function(*others, own, shifts)
        return value.detach(), *torch.autograd.grad((value * cell_weight).sum(), wanted)

    found = of(log_prob, *inputs, offsets)
    cell_weight = cell_weight.double()
    truth = of(reference_log_prob, *(each.double() for each in (*inputs, offsets)))
    for ours, exact_value in zip(found, truth, strict=True):
        scale = 1 + exact_value.abs().max()
        assert bool(((ours.double() - exact_value).abs() <= 2e-4 * scale).all())
    with torch.no_grad():
        alone = log_prob(*inputs, own, offsets)
    torch.testing.assert_close(alone.double(), truth[0], rtol=1e-5, atol=1e-2)


def test_an_offset_is_a_change_of_the_bias_of_one_cell():
    counts, size, c, hidden, weight, bias = problem()
    own, offsets = torch.tensor([[7]]), torch.tensor([[1.5]])
    changed = bias.clone()
    changed[7] += 1.5
    with torch.no_grad():
        ours = log_prob(counts[:1], size[:1], c, hidden[:, :1], weight, bias, own, offsets)
        expected = log_prob(counts[:1], size[:1], c, hidden[:, :1], weight, changed)
    torch.testing.assert_close(ours, expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    particles=st.sampled_from([(), (1,), (3,)]),
    cells=st.integers(1, 9),
    genes=st.integers(4, 70),
    is_constant=st.booleans(),
)
def test_concentrations_of_single_genes_are_those_of_the_definition(
    seed, particles, cells, genes, is_constant
):
    """Value and gradients, those of the factors included; a gene without a factor may repeat."""
    inputs = problem(seed, particles, cells, genes, 3, largest=90.0)
    inputs[2] = torch.linspace(0.3, 30, genes)
    own = torch.stack([torch.randperm(genes)[:3] for _ in range(cells)])
    own[0, 2] = own[0, 0]
    factors = torch.randn(cells, 3)
    factors[0, 2] = 0
    offsets = torch.randn(*particles, cells, 3)
    weight = torch.ones(*particles, cells) if is_constant else torch.rand(*particles, cells)

    def of(function, counts, size, *rest):
        leaves = [each.detach().clone().requires_grad_() for each in rest]
        value = function(counts, size, *leaves[:4], own, *leaves[4:])
        return value.detach(), *torch.autograd.grad((value * weight).sum(), leaves)

    found = of(log_prob, *inputs, offsets, factors)
    weight = weight.double()
    double = (each.double() for each in (*inputs, offsets, factors))
    found[-1][0, 2] = 0  # of the gene that repeats
    truth = of(reference_log_prob, *double)
    truth[-1][0, 2] = 0
    for ours, exactly in zip(found, truth, strict=True):
        scale = exactly.abs().max() + 1
        torch.testing.assert_close(ours / scale, (exactly / scale).float(), rtol=2e-3, atol=2e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            log_prob(*inputs, own, offsets, factors), found[0], rtol=1e-5, atol=1e-4
        )
        # a cell's counts by scipy, gene by gene
        counts, size, c, hidden, head, bias = (each.double().numpy() for each in inputs)
        logits = (hidden.reshape(-1, cells, 3)[:1] @ head.T + bias)[0, -1]
        of_cell = offsets.reshape(-1, cells, 3)[0, -1].double().numpy()
        shape = c.copy()
        for gene, offset, factor in zip(
            own[-1].tolist(), of_cell, factors[-1].tolist(), strict=True
        ):
            logits[gene] += offset
            shape[gene] *= np.exp(factor)
        mean = size[-1] * np.exp(logits - logits.max())
        mean = mean / np.exp(logits - logits.max()).sum() + SMALLEST_MEAN
        expected = stats.nbinom.logpmf(counts[-1], shape, shape / (shape + mean)).sum()
    assert float(found[0].reshape(-1, cells)[0, -1]) == pytest.approx(expected, rel=1e-3)


def test_replicates_have_factors_of_their_own():
    inputs = [torch.stack([each, each.roll(1, 0)]) for each in problem(genes=40, largest=9.0)]
    inputs[2] = torch.rand(2, 40) + 0.5
    own = torch.stack([torch.randperm(40)[:2] for _ in range(6)])
    offsets, factors = torch.randn(2, 2, 6, 2), torch.randn(2, 6, 2)
    together = vmap(lambda *one: log_prob(*one[:6], own, *one[6:]))(*inputs, offsets, factors)
    for number in range(2):
        alone = [each[number] for each in (*inputs, offsets, factors)]
        torch.testing.assert_close(
            together[number], log_prob(*alone[:6], own, *alone[6:]), rtol=1e-5, atol=1e-4
        )
