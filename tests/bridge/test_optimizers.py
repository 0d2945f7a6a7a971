"""Every optimizer of torch's own test database, with the arguments it is tested with, against torch in float64."""

import copy
import os
import warnings

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch imports it with its database

from lightjax_torch.arrays import to_jax, to_torch  # noqa: E402
from lightjax_torch.errors import CaptureError  # noqa: E402
from lightjax_torch.optim import CapturedOptimizer  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

STEPS = 4
# What they do in Python depends on values, or they ask for gradients that others do not have.
REFUSED = {"Adafactor": "asks for the value", "LBFGS": "closure", "SparseAdam": "dense gradients"}
INFOS = {info.optim_cls.__name__: info for info in optim_db}


def parameters(matrices_only):
    torch.manual_seed(0)
    shapes = [(4, 3), (2, 5)] if matrices_only else [(4, 3), (5,), ()]
    return {
        f"p{place}": torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for place, shape in enumerate(shapes)
    }


def gradients(params):
    torch.manual_seed(1)
    # A gradient of exactly zero among them: what optimizers that count signs make of it.
    steps = [{name: torch.randn_like(p) for name, p in params.items()} for _ in range(STEPS)]
    steps[1]["p0"][0] = 0
    return steps


def in_torch(optimizer, params, steps):
    for grads in steps:
        for name, param in params.items():
            param.grad = grads[name].clone()
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def in_jax(optimizer, params, steps):
    names = {id(p): name for name, p in params.items()}
    transformation = CapturedOptimizer(optimizer, names, list(params)).transformation()
    arrays = to_jax({name: p.detach() for name, p in params.items()})
    state = transformation.init(arrays)

    @jax.jit
    def step(arrays, state, grads):
        updates, state = transformation.update(grads, state, arrays)
        return optax.apply_updates(arrays, updates), state

    for grads in steps:
        arrays, state = step(arrays, state, to_jax(grads))
    return {name: to_torch(array).numpy() for name, array in arrays.items()}


def made(info, arguments, params):
    """Makes an optimizer with two groups, where it takes groups."""
    arguments = copy.deepcopy(arguments)
    arguments.pop("foreach", None)
    values = list(params.values())
    if not info.supports_param_groups:
        return info.optim_cls(values, **arguments)
    groups = [{"params": values[:1]}, {"params": values[1:], "lr": 0.005}]
    return info.optim_cls(groups, **({"lr": 0.01} | arguments))


def chosen(given):
    """Of torch's arguments those that set most; all of them with LIGHTJAX_ALL_OPTIMIZERS=1."""
    return given if os.environ.get("LIGHTJAX_ALL_OPTIMIZERS") else [max(given, key=lambda one: len(one.kwargs))]


@pytest.mark.parametrize("name", [name for name in INFOS if name not in REFUSED and name != "Muon"])
def test_an_optimizer_steps_as_in_torch(name, double_precision):
    info = INFOS[name]
    given = [one for one in info.optim_inputs_func("cpu") if not one.kwargs.get("fused")]
    for one in chosen(given):
        params = parameters(False)
        steps = gradients(params)
        found = in_jax(made(info, one.kwargs, params), params, steps)
        expected = in_torch(made(info, one.kwargs, params), params, steps)
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12, err_msg=f"{name}, {one.desc}: {key}")


def ahead(kind):
    """Parameters and an optimizer that has updated p0 twice, p1 once and the others never."""
    params = parameters(False) | {"p3": torch.nn.Parameter(torch.ones(4, 3))}
    optimizer = kind(params.values(), lr=0.1)
    for names in (["p0"], ["p0", "p1"]):
        for name, param in params.items():
            param.grad = torch.randn_like(param) if name in names else None
        optimizer.step()
    return params, optimizer


def test_parameters_that_have_stepped_more_often_than_others_go_on_with_their_own_count(double_precision):
    params, optimizer = ahead(torch.optim.Adam)
    steps = [{name: torch.randn_like(p) for name, p in params.items()} for _ in range(STEPS)]
    found = in_jax(optimizer, params, steps)
    for key, value in in_torch(optimizer, params, steps).items():
        np.testing.assert_allclose(found[key], value, rtol=1e-9, atol=1e-12, err_msg=key)


def test_a_first_step_of_its_own_beside_usual_ones_is_refused(double_precision):
    params, optimizer = ahead(torch.optim.NAdam)
    with pytest.raises(CaptureError, match="NAdam has no state yet for p2, p3"):
        in_jax(optimizer, params, gradients(params))


@pytest.mark.parametrize("name", [name for name in INFOS if name not in REFUSED and name != "Muon"])
def test_a_rate_of_zero_changes_what_torch_changes(name, double_precision):
    """As a warm-up begins, with parameters that never had a gradient, as rows of an embedding."""
    params = parameters(False)
    steps = gradients(params)
    for grads in steps:
        grads["p0"][1] = 0
        grads["p2"] = torch.zeros_like(grads["p2"])

    def optimizer(params):
        found = made(INFOS[name], {}, params)
        for group in found.param_groups:
            group["lr"] = 0.0
        return found

    found = in_jax(optimizer(params), params, steps)
    expected = in_torch(optimizer(params), params, steps)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-12, err_msg=key)


def test_muon_is_as_near_to_float64_as_torchs(double_precision, monkeypatch):
    # Its iterations are in bfloat16 and amplify what that rounds, in every program in another way.
    params = parameters(True)
    steps = gradients(params)
    optimizer = lambda params: made(INFOS["Muon"], {}, params)  # noqa: E731
    found = in_jax(optimizer(params), params, steps)
    in_bfloat16, exact = copy.deepcopy(params), copy.deepcopy(params)
    expected = in_torch(optimizer(in_bfloat16), in_bfloat16, steps)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    truth = in_torch(optimizer(exact), exact, steps)
    ours, torchs = (max(np.abs(of[key] - truth[key]).max() for key in truth) for of in (found, expected))
    assert 0 < ours < 2 * torchs < 0.01


@pytest.mark.parametrize("name", REFUSED)
def test_an_optimizer_that_cannot_be_ported_says_why(name, double_precision):
    params = parameters(False)
    optimizer = made(INFOS[name], {}, params)
    with pytest.raises(CaptureError, match=REFUSED[name]):
        in_jax(optimizer, params, gradients(params))
