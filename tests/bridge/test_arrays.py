"""`to_jax` and `to_torch`: same bits, same containers, memory never shared, refusals that name the leaf."""

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from lightjax_torch import ConversionError, to_jax, to_torch  # noqa: E402  (needs torch)

DTYPES_32 = [
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "int8",
    "int16",
    "int32",
    "float16",
    "bfloat16",
    "float32",
    "complex64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
]
DTYPES_64 = ["int64", "uint64", "float64", "complex128"]
SHAPES = [(), (0,), (3, 0, 2), (7,), (2, 3, 4)]


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    weight: Any
    name: str = "layer"


def random_tensor(dtype: str, shape: tuple[int, ...]) -> Any:
    """Random bits, so that infinities, subnormal numbers and not-a-numbers are among the values."""
    if 0 in shape:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    bits = torch.randint(0, 256, (*shape, getattr(torch, dtype).itemsize), dtype=torch.uint8)
    if dtype == "bool":
        return bits.view(shape) > 127
    return bits.view(getattr(torch, dtype)).view(shape)


def bits_of(array: Any) -> bytes:
    if isinstance(array, torch.Tensor):
        return array.reshape(-1, 1).view(torch.uint8).numpy().tobytes()
    return np.asarray(array).tobytes()


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES_32)
def test_bits_dtype_and_shape_survive_both_ways(dtype, shape):
    tensor = random_tensor(dtype, shape)
    array = to_jax(tensor)
    assert isinstance(array, jax.Array)
    assert (array.dtype.name, array.shape) == (dtype, shape)
    assert bits_of(array) == bits_of(tensor)
    back = to_torch(array)
    assert (back.dtype, tuple(back.shape)) == (tensor.dtype, shape)
    assert bits_of(back) == bits_of(tensor)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", DTYPES_64)
def test_bits_of_64_bit_dtypes_survive_both_ways_under_x64(dtype):
    tensor = random_tensor(dtype, (5, 2))
    array = to_jax(tensor)
    assert array.dtype.name == dtype
    assert bits_of(array) == bits_of(to_torch(array)) == bits_of(tensor)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[::2, 1:],
        lambda t: t[:, 1].expand(4, 4),
        lambda t: t.flip(0),
        lambda t: torch.as_strided(t, (3, 3), (1, 1)),
        lambda t: torch.complex(t, t).conj(),
        lambda t: torch.complex(t, t).conj().imag,
        lambda t: t.requires_grad_(),
        lambda t: torch.nn.Parameter(t),
    ],
    ids=[
        "transposed",
        "sliced",
        "expanded",
        "flipped",
        "overlapping",
        "conj",
        "neg",
        "requires_grad",
        "parameter",
    ],
)
def test_views_and_tensors_with_gradients_convert_by_value(view):
    tensor = view(torch.arange(16.0).reshape(4, 4))
    np.testing.assert_array_equal(to_jax(tensor), tensor.detach().resolve_conj().resolve_neg().numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int64"])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_later_write_in_torch_is_not_seen_by_the_array(dtype, size):
    for offset in range(8):  # device_put aliases numpy memory that happens to be aligned: try every alignment
        tensor = torch.zeros(size + offset, dtype=getattr(torch, dtype))[offset:]
        array = to_jax({"leaf": tensor})["leaf"]
        tensor.fill_(1)
        assert not np.asarray(array).any()


def test_a_later_write_to_numpy_memory_is_not_seen_either_way():
    for make in (to_jax, to_torch):
        memory = np.zeros(4096, np.float32)
        converted = make(memory)
        memory[:] = 1
        assert not np.asarray(converted).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
def test_a_later_write_to_the_tensor_is_not_seen_by_the_array(dtype):
    array = jnp.zeros(4096, dtype)
    tensor = to_torch(array)
    tensor.fill_(1)
    assert not np.asarray(array).any()


def test_a_tensor_given_to_to_torch_is_detached_and_cloned():
    tensor = torch.zeros(3, requires_grad=True)
    copied = to_torch([tensor])[0]
    copied.fill_(1)
    assert not copied.requires_grad
    assert not tensor.any()


def test_tied_tensors_become_arrays_that_can_be_donated_together():
    weight = torch.ones(4096)
    state = to_jax({"embedding": weight, "head": weight})
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s), donate_argnums=0)(state)
    assert float(doubled["head"][0]) == 2


def test_containers_and_their_order_survive_both_ways():
    tree = {
        "z": [torch.ones(2), (torch.zeros(()), None, ())],
        "a": Pair(torch.ones(1), {"b": 0.9, "name": "adam", "amsgrad": False}),
        3: collections.OrderedDict(y=torch.ones(1), x=Frozen(torch.zeros(2))),
        "default": collections.defaultdict(list, k=torch.ones(1)),
        "empty": {},
    }
    arrays = to_jax(tree)
    for converted, kind in ((arrays, jax.Array), (to_torch(arrays), torch.Tensor)):
        assert list(converted) == list(tree)
        assert list(converted[3]) == ["y", "x"]
        assert type(converted["a"]) is Pair
        assert type(converted[3]["x"]) is Frozen
        assert converted[3]["x"].name == "layer"
        assert converted["default"].default_factory is list
        assert converted["a"].second == {"b": 0.9, "name": "adam", "amsgrad": False}
        leaves = [converted["z"][0], converted["z"][1][0], converted["a"].first, converted[3]["x"].weight]
        assert all(isinstance(leaf, kind) for leaf in leaves)
        assert converted["z"][1][1:] == (None, ())
    assert isinstance(tree["z"][0], torch.Tensor), "the tree that was given has changed"


def test_a_state_dict_trains_in_jax_and_loads_back():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    params = to_jax(module.state_dict())
    optimizer = optax.sgd(1.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params))
    module.load_state_dict(to_torch({name: params[name] + updates[name] for name in params}))
    np.testing.assert_array_equal(module[0].weight.detach().numpy(), params["0.weight"] - 1)
    assert module[1].num_batches_tracked.dtype == torch.int64


def test_registered_pytrees_keep_their_type():
    state = optax.adam(1e-3).init({"w": jnp.ones(2)})
    tensors = to_torch(state)
    assert type(tensors[0]) is type(state[0])
    assert torch.equal(tensors[0].mu["w"], torch.zeros(2))
    assert jax.tree.structure(to_jax(tensors)) == jax.tree.structure(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_that_torch_makes_without_memory_become_zeros(dtype):
    np.testing.assert_array_equal(to_jax(torch._efficientzerotensor((2, 3), dtype=dtype)), np.zeros((2, 3)))


def test_64_bits_become_32_where_the_values_fit():
    limits = torch.tensor([-(2**31), 2**31 - 1])
    assert to_jax(limits).dtype == jnp.int32
    np.testing.assert_array_equal(to_jax(limits), limits.numpy())
    doubles = to_jax(torch.tensor([0.1, float("inf"), float("nan")], dtype=torch.float64))
    assert doubles.dtype == jnp.float32
    np.testing.assert_array_equal(doubles, np.array([0.1, np.inf, np.nan], np.float32))


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (
            torch.tensor([1, 2**31]),
            "int64 and holds 2147483648, which int32 cannot hold; .* make .*jax_enable_x64",
        ),
        (torch.tensor([-(2**31) - 1]), "holds -2147483649, which int32"),
        (torch.tensor([2**32], dtype=torch.uint64), "uint64 and holds 4294967296, which uint32"),
        (torch.tensor([1e39], dtype=torch.float64), r"float64 and holds 1e\+39, which float32"),
        (torch.tensor([1e39j], dtype=torch.complex128), "which complex64 cannot hold"),
        (torch.empty(2, device="meta"), "Tensor on meta that holds no data .* materialize it"),
        (torch.eye(2).to_sparse(), r"layout torch.sparse_coo; .* write tensor.to_dense\(\)"),
        (torch.empty(2, dtype=torch.bits8), "dtype torch.bits8; JAX has no such dtype; convert it first"),
        (torch.nn.Linear(1, 1), r"is a torch.nn.modules.linear.Linear; .* write module.state_dict\(\)"),
        (torch.Size([2]), "is a torch.Size; to_jax converts torch tensors .* list or tuple"),
        (object(), "is a builtins.object; to_jax converts torch tensors"),
        (np.array(["text"]), "dtype <U4; JAX has no such dtype; take it out"),
        (np.array([object()]), "dtype object; JAX has no such dtype"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_to_jax_refuses_by_path_what_has_no_exact_counterpart(leaf, words):
    with pytest.raises(ConversionError, match=f"^leaf 'model/0/weight' .*{words}"):
        to_jax({"model": [Frozen(leaf)]})


def test_to_jax_refuses_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.ones(2)
    with pytest.raises(ConversionError, match="leaf 'x' is a FakeTensor on cpu that holds no data of its own"):
        to_jax({"x": fake})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # deprecated, and still made by older programs
def test_to_jax_refuses_quantized_tensors():
    leaf = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(ConversionError, match=r"leaf '0' is quantized \(torch.qint8\); .* write tensor.dequantize"):
        to_jax([leaf])


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        (jax.random.key(0), "is a PRNG key .* convert jax.random.key_data"),
        (jnp.ones(2, jnp.int4), "dtype int4; torch has no such dtype; convert it first"),
        (np.array(["text"]), "dtype <U4; torch has no such dtype"),
        (object(), "is a builtins.object; to_torch converts JAX arrays"),
    ],
    ids=["key", "int4", "text", "object"],
)
def test_to_torch_refuses_by_path_what_has_no_exact_counterpart(leaf, words):
    with pytest.raises(ConversionError, match=f"^leaf 'state/0' .*{words}"):
        to_torch({"state": (leaf,)})


def test_to_torch_refuses_traced_arrays():
    with pytest.raises(ConversionError, match=r"leaf 'x' is traced \(float32\[2\]\); .* convert the result"):
        jax.jit(lambda x: to_torch({"x": x}))(jnp.ones(2))


def test_to_torch_refuses_donated_arrays():
    array = jnp.ones(2)
    array.delete()
    with pytest.raises(ConversionError, match="leaf 'x' has been deleted; .* the state that the step returned"):
        to_torch({"x": array})


def test_sharded_arrays_convert_whole():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    array = jax.device_put(jnp.arange(jax.device_count() * 2), sharding)
    assert to_torch(array).tolist() == list(range(jax.device_count() * 2))


def test_numpy_arrays_of_foreign_byte_order_and_negative_strides_convert_by_value():
    array = np.arange(4, dtype=">i4")[::-1]
    assert to_torch(array).tolist() == np.asarray(to_jax(array)).tolist() == [3, 2, 1, 0]


def test_conversion_passes_a_transfer_guard():
    with jax.transfer_guard("disallow"):
        assert to_torch(to_jax(torch.ones(3))).tolist() == [1.0, 1.0, 1.0]
