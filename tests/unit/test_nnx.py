"""Models of flax's nnx: parameters and the rest of a split module in a `TrainState`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lightjax as lj


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.dense(x))))[:, 0]


GRAPH, PARAMS, REST = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def loss_fn(state, batch):
    net = nnx.merge(GRAPH, state.params, state.model_state)
    losses = net(batch) ** 2
    return losses.mean(), ({"loss": lj.Mean(losses)}, nnx.split(net, nnx.Param, ...)[2])


@pytest.fixture
def state():
    return lj.TrainState.create(params=PARAMS, optimizer=optax.sgd(0.1), model_state=REST)


def test_a_module_that_changes_its_statistics_in_the_loss_has_the_gradient_that_nnx_finds(state):
    grads, (_, statistics) = jax.jit(lj.grad(loss_fn))(state, X)
    net = nnx.merge(GRAPH, *jax.tree.map(jnp.copy, (PARAMS, REST)))
    wanted = nnx.grad(lambda net: (net(X) ** 2).mean())(net)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), grads, wanted)
    np.testing.assert_allclose(statistics["norm"]["mean"].get_value(), net.norm.mean.get_value(), rtol=1e-5)


def test_statistics_go_through_microbatches_and_half_precision(state):
    state = state.with_policy(precision="16-mixed", microbatches=2)
    grads, (metrics, statistics) = jax.jit(lj.grad(loss_fn))(state, X)
    assert jax.tree.structure(grads) == jax.tree.structure(PARAMS)
    halves = [nnx.merge(GRAPH, *jax.tree.map(jnp.copy, (PARAMS, REST))).dense(half).mean(0) for half in (X[:4], X[4:])]
    # Momentum 0.99 from a mean of 0, half after half.
    wanted = 0.99 * 0.01 * halves[0] + 0.01 * halves[1]
    np.testing.assert_allclose(statistics["norm"]["mean"].get_value(), wanted, rtol=2e-2, atol=1e-4)
    assert np.isfinite(metrics["loss"].compute())
