"""What cannot be ported is told at once, with the user's own line and a way out; a capture leaves nothing behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lightjax_torch import CaptureError, UnsupportedOperatorError, jax_function, register_lowering  # noqa: E402

HERE = r"test_capture_errors\.py:\d+"


def branches(x):
    return x * 2 if x.sum() > 0 else x


def as_numpy(x):
    return torch.from_numpy(x.numpy() * 2)


def masked(x):
    return x[x > 0].mean()


def two_unknown(x):
    return torch.special.airy_ai(x.detach()) + torch.linalg.ldl_factor(x.detach()).LD


def sharing(x):
    y, z = x * 1, x * 2
    y.data = z.data
    return y + z


def grown(x):
    return [0.0] * int(x.sum())


@pytest.mark.parametrize("function", [branches, grown])
def test_python_that_needs_a_value_names_the_line_the_reason_and_the_way_out(function):
    with pytest.raises(CaptureError, match=rf'{HERE} in {function.__name__}: .*value.*backend="eager"'):
        jax_function(function, torch.ones(3))


def test_numpy_inside_of_the_step_is_refused_with_its_line():
    with pytest.raises(CaptureError, match=rf"{HERE} in as_numpy"):
        jax_function(as_numpy, torch.ones(3))


def test_two_tensors_that_come_to_share_memory_are_refused():
    with pytest.raises(CaptureError, match=rf"{HERE}: `x\.data = y` makes two tensors share one memory"):
        jax_function(sharing, torch.ones(3))


def test_shapes_that_depend_on_values_name_the_line():
    with pytest.raises(CaptureError, match=rf"(?s){HERE}.*torch\.where"):
        jax_function(masked, torch.ones(3))


def test_sparse_tensors_are_refused_with_what_is_dense():
    with pytest.raises(CaptureError, match=rf"{HERE}: aten\._to_sparse.*dense tensors"):
        jax_function(lambda x: x.to_sparse().to_dense(), torch.ones(3, 3))
    with pytest.raises(CaptureError, match="sparse=False"):
        jax_function(nn.Embedding(5, 3, sparse=True), torch.tensor([1]))


def test_every_operation_without_a_rule_is_listed_at_once():
    with pytest.raises(
        UnsupportedOperatorError, match=rf"2 operations have.*ldl_factor.*{HERE}.*airy_ai.*{HERE}.*register_lowering"
    ):
        jax_function(two_unknown, torch.ones(3, 3))


def test_an_error_of_the_program_itself_keeps_its_text_and_line():
    with pytest.raises(CaptureError, match=rf"{HERE} in <lambda>.*reduction dim"):
        jax_function(lambda x: nn.functional.linear(x, torch.ones(2, 5)), torch.ones(3, 4))


def test_randomness_without_a_key_is_refused():
    fn, params, buffers = jax_function(nn.Dropout(0.5), torch.ones(8))
    with pytest.raises(CaptureError, match="draws random numbers.*key=key"):
        fn(params, buffers, jnp.ones(8))


def test_dropout_follows_the_key():
    fn, params, buffers = jax_function(nn.Sequential(nn.Dropout(0.3), nn.Dropout(0.3)), torch.ones(100_000))
    run = jax.jit(lambda key: fn(params, buffers, jnp.ones(100_000), key=key)[0])
    first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
    assert (first == again).all()
    assert not (first == other).all()
    # Two independent layers: 0.7 * 0.7 of the elements stay, and their mean stays 1.
    assert abs(float((first > 0).mean()) - 0.49) < 0.01
    assert abs(float(first.mean()) - 1.0) < 0.01


def test_a_second_derivative_is_refused():
    fn, params, buffers = jax_function(nn.Linear(3, 1), torch.ones(2, 3))
    loss = lambda params: (fn(params, buffers, jnp.ones((2, 3)))[0] ** 2).sum()  # noqa: E731
    with pytest.raises(CaptureError, match="differentiated a second time"):
        jax.grad(lambda params: jax.grad(loss)(params)["bias"].sum())(params)


def test_capturing_leaves_no_trace():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen, self.cache = nn.Linear(3, 3), [], {}

        def forward(self, x):
            self.seen.append(len(x))
            self.cache["x"] = x
            self.last = self.layer(x)
            return self.last

    module = Caching().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    flag, apply = torch.compiler.is_compiling(), torch.autograd.Function.apply
    jax_function(module, torch.ones(2, 3))
    assert module.seen == []
    assert module.cache == {}
    assert not hasattr(module, "last")
    assert all((tensor == before[name]).all() for name, tensor in module.state_dict().items())
    assert torch.compiler.is_compiling() == flag
    assert torch.autograd.Function.apply == apply
    assert module(torch.ones(2, 3)).requires_grad


def test_a_module_on_the_meta_device_is_captured_without_memory():
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    fn, params, _ = jax_function(module, torch.empty(3, 4, device="meta"))
    assert params == {}
    shapes = {name: jax.ShapeDtypeStruct(tuple(p.shape), jnp.float32) for name, p in module.named_parameters()}
    out, _ = jax.eval_shape(lambda params, x: fn(params, {}, x), shapes, jax.ShapeDtypeStruct((3, 4), jnp.float32))
    assert out.shape == (3, 2)


def test_it_is_mapped_and_captured_again_for_other_shapes():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    fn, params, buffers = jax_function(module, torch.ones(3))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    rows = jax.vmap(lambda row: fn(params, buffers, row)[0])(x)
    at_once, _ = fn(params, buffers, x)
    np.testing.assert_allclose(rows, at_once, rtol=1e-6)


def test_a_users_operator_with_a_users_rule():
    @torch.library.custom_op("census::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    @cube.register_fake
    def _(x):
        return torch.empty_like(x)

    cube.register_autograd(
        lambda ctx, g: g * 3 * ctx.saved_tensors[0] ** 2,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    with pytest.raises(UnsupportedOperatorError, match="census.cube"):
        jax_function(cube, torch.ones(2))
    register_lowering(torch.ops.census.cube.default, lambda x: x**3)
    fn, params, buffers = jax_function(cube, torch.ones(2))
    grads = jax.grad(lambda x: fn(params, buffers, x)[0].sum())(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(grads, [3.0, 12.0])


def test_bfloat16_parameters_are_captured_as_such():
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.abs_()  # sums in which nothing cancels
    fn, params, buffers = jax_function(module, torch.ones(4, 3))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    out, _ = fn(half, buffers, jnp.ones((4, 3), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    expected = module.to(torch.bfloat16)(torch.ones(4, 3, dtype=torch.bfloat16)).float().detach().numpy()
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=2e-2)


def test_constants_have_the_dtype_that_was_torchs_default(double_precision):
    def function(x):
        torch.set_default_dtype(torch.float64)
        smallest = torch.full((), torch.finfo(x.dtype).min)
        torch.set_default_dtype(torch.float32)
        return torch.maximum(x, smallest)

    try:
        fn, params, buffers = jax_function(function, torch.ones(3))
    finally:
        torch.set_default_dtype(torch.float64)
    assert fn(params, buffers, jnp.ones(3))[0].dtype == jnp.float64
