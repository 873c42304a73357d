import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from samsvae.kernels import linear
from samsvae.kernels.linear import Linear, multiply
from samsvae.models.networks import HiddenLayers

SIZES = st.integers(1, 40)
# inputs, and what is added: none, as large as the outputs, with fewer or with more dimensions
SHAPES = [((7,), None), ((3, 7), (3, 7)), ((3, 7), (7,)), ((7,), (3, 7)), ((3, 1), (3, 7))]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def either_layout(rows, columns, by_columns):
    return torch.randn(columns, rows).T if by_columns else torch.randn(rows, columns)


def gradients(function, tensors, weight):
    tensors = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    output = function(*tensors)
    (output * weight).sum().backward()
    return [output.detach(), *(tensor.grad for tensor in tensors)]


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_products_are_those_in_double_precision(rows, inner, columns, left_turned, right_turned):
    left = either_layout(rows, inner, left_turned)
    right = either_layout(inner, columns, right_turned)
    product = multiply(left, right)
    assert product.shape == (rows, columns)
    exact = left.double() @ right.double()
    torch.testing.assert_close(product.double(), exact, rtol=1e-6, atol=2e-6 * inner)


@pytest.mark.parametrize("slope", [1.0, 0.01])
@pytest.mark.parametrize(("outer", "added_outer"), SHAPES)
def test_a_layer_and_its_gradients_are_those_of_plain_operations(outer, added_outer, slope):
    layer = Linear(5, 4)
    x, weight, bias = torch.randn(*outer, 5), layer.weight, layer.bias
    added = [] if added_outer is None else [torch.randn(*added_outer, 4)]

    def plain(x, weight, bias, added=0):
        return functional.leaky_relu(x @ weight.T + bias + added, slope)

    def ours(x, weight, bias, added=None):
        state = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, state, (x, added, slope))

    inputs = [x, weight, bias, *added]
    by = torch.randn(plain(*inputs).shape)
    torch.testing.assert_close(gradients(ours, inputs, by), gradients(plain, inputs, by))


@pytest.mark.parametrize(("outer", "added_outer"), SHAPES)
def test_a_layer_is_the_same_whether_derivatives_are_recorded(outer, added_outer):
    layer, x = Linear(5, 4), torch.randn(*outer, 5)
    added = None if added_outer is None else torch.randn(*added_outer, 4)
    recorded = layer(x, added, 0.01)
    with torch.no_grad():
        plain = layer(x, added, 0.01)
    assert recorded.requires_grad
    assert not plain.requires_grad
    assert torch.equal(plain, recorded)


def test_what_is_added_is_left_as_it_was():
    layer, added = Linear(5, 4), torch.randn(3, 4)
    before = added.clone()
    layer(torch.randn(3, 5), added, 0.01)
    assert torch.equal(added, before)


def test_results_do_not_depend_on_the_number_of_threads():
    layer, x = Linear(300, 200), torch.randn(400, 300)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(gradients(layer, [x], 1.0))
            found[-1].append(multiply(x.T, x))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_layers_of_several_models_act_as_each_alone():
    layers = [Linear(5, 4) for _ in range(3)]
    x, added = torch.randn(3, 7, 5), torch.randn(7, 4)
    parameters, _ = torch.func.stack_module_state(layers)
    shared = copy.deepcopy(layers[0]).to("meta")

    def of_one(parameters, x):
        return torch.func.functional_call(shared, parameters, (x, added, 0.01))

    together = torch.vmap(of_one)(parameters, x)
    together.square().sum().backward()
    for index, layer in enumerate(layers):
        alone = layer(x[index], added, 0.01)
        torch.testing.assert_close(together[index], alone)
        alone.square().sum().backward()
        torch.testing.assert_close(parameters["weight"].grad[index], layer.weight.grad)


def test_where_onednn_is_not_at_hand_pytorch_multiplies(monkeypatch):
    layer, x, left = Linear(5, 4), torch.randn(7, 5), torch.randn(6, 7)
    expected = layer(x, slope=0.01), multiply(left, x)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(linear, "_onednn_linear", None)
    torch.testing.assert_close((layer(x, slope=0.01), multiply(left, x)), expected)


def test_the_input_that_is_left_out_is_the_identity_matrix():
    torch.manual_seed(0)
    layers = HiddenLayers([3, 7], 5, 2)
    masks = torch.rand(4, 7, 3, requires_grad=True)
    found, gradients = [], []
    for inputs in ((masks, torch.eye(7)), (masks,)):
        layers.zero_grad()
        masks.grad = None
        hidden = layers(*inputs)
        hidden.square().sum().backward()
        found.append(hidden.detach())
        gradients.append([masks.grad, *(p.grad.clone() for p in layers.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    for expected, own in zip(*gradients, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)
