"""Every program of the census against torch in float64: outputs, all gradients, buffers."""

import warnings

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lightjax_torch import jax_function  # noqa: E402
from lightjax_torch.arrays import to_jax  # noqa: E402
from tests.bridge.census import gradients, layers, numerics, state, views  # noqa: E402, F401
from tests.bridge.census.collection import PROGRAMS  # noqa: E402

TOLERANCE = 1e-9


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def in_torch(module, arguments):
    """Runs a program in torch; returns outputs, cotangents, gradients of parameters and arguments, and buffers."""
    arguments = [a.clone().requires_grad_(a.is_floating_point()) for a in arguments]
    outputs = module(*[a * 1 if a.is_floating_point() else a for a in arguments])
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    cotangents = [torch.randn(leaf.shape, dtype=leaf.dtype) for leaf in leaves if leaf.requires_grad]
    roots = [leaf for leaf in leaves if leaf.requires_grad]
    if roots:
        torch.autograd.backward(roots, cotangents)
    named = dict(module.named_parameters()) if isinstance(module, torch.nn.Module) else {}
    buffers = dict(module.named_buffers()) if isinstance(module, torch.nn.Module) else {}
    return leaves, cotangents, {name: p.grad for name, p in named.items()}, [a.grad for a in arguments], buffers


def close(ours, theirs, what):
    theirs = theirs.detach().resolve_conj().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)


def zeros_for_none(gradient, like):
    return torch.zeros(tuple(like.shape)) if gradient is None else gradient


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_means_in_jax_what_it_means_in_torch(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about what it deprecates
        module, arguments = PROGRAMS[name]()
        fn, params, buffers = jax_function(module, *arguments)
        theirs, cotangents, of_params, of_arguments, theirs_after = in_torch(module, arguments)

    inputs = [to_jax(a) for a in arguments]
    floating = [i for i, a in enumerate(arguments) if a.is_floating_point()]
    seeds = iter(cotangents)
    seeds = [to_jax(next(seeds)) if leaf.requires_grad else None for leaf in theirs]

    def run(params, chosen):
        full = list(inputs)
        for i, a in zip(floating, chosen, strict=True):
            full[i] = a
        outputs, after = fn(params, buffers, *full)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, jax.Array)]
        total = 0.0
        for leaf, seed in zip(leaves, seeds, strict=True):
            if seed is not None:
                total = total + (leaf * seed.conj()).real.sum()
        return total, (leaves, after)

    chosen = [inputs[i] for i in floating]
    (g_params, g_chosen), (ours, after) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(params, chosen)

    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        close(one, other, f"output {place}")
    for parameter, gradient in g_params.items():
        close(gradient, zeros_for_none(of_params[parameter], params[parameter]), parameter)
    for i, gradient in zip(floating, g_chosen, strict=True):
        close(gradient, zeros_for_none(of_arguments[i], arguments[i]), f"argument {i}")
    for buffer, value in theirs_after.items():
        close(after[buffer], value, buffer)


def test_the_census_is_large():
    assert len(PROGRAMS) >= 100
