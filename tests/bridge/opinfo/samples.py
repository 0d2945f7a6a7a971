"""One sample of torch's operator database, through torch and through the bridge."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.utils import _pytree as pytree

from lightjax_torch.arrays import ConversionError, jax_dtype, to_jax
from lightjax_torch.capture import Graph, capture, capture_with_gradients
from lightjax_torch.errors import CaptureError, UnsupportedOperatorError
from lightjax_torch.program import _COTANGENT, Node, Program
from tests.bridge.opinfo.database import DecorateInfo, op_db, precisionOverride, toleranceOverride

# Torch's defaults for comparing tensors of a dtype.
_TOLERANCES = {
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
    torch.complex64: (1.3e-6, 1e-5),
    torch.complex128: (1e-7, 1e-7),
}


# Which of equal elements these name is left open by torch; whole numbers are full of equal ones.
_TIES = ("sort", "argsort", "topk", "kthvalue", "median", "nanmedian", "mode")


@dataclass(frozen=True)
class Outcome:
    """What became of one sample.

    Attributes:
      kind: "passes"; "random": draws numbers, so only shapes and dtypes were compared; "values": Python or a shape
        depends on values; "no array": sparse, quantized or without a counterpart in JAX; "missing": refused for want of
        a rule; "wrong": other numbers than torch's.
      reason: what was said.
    """

    kind: str
    reason: str = ""

    @property
    def is_expressible(self) -> bool:
        """Whether a program of fixed shapes could compute it."""
        return self.kind not in ("values", "no array")


# Of the other dtypes a few samples an operator: what they add is the dtype, not the arguments.
_DTYPES = {
    "float32": (torch.float32, None),
    "float64": (torch.float64, 8),
    "int64": (torch.int64, 8),
    "bool": (torch.bool, 8),
}


def operators() -> list[Any]:
    """Returns torch's operators; a variant of one has a name of its own."""
    return list(op_db)


def of_operator(op: Any, most: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Compares the samples of an operator: `(kind, reason)` of each, by dtype; "gradient" is float32 with gradients.

    Args:
      op: an entry of the database.
      most: how many samples a dtype; 0 takes all of float32.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for name, (dtype, limit) in _DTYPES.items():
        if not op.supports_dtype(dtype, "cpu"):
            continue
        with jax.enable_x64(dtype is not torch.float32):
            chosen = samples(op, dtype, min(most or 1 << 30, limit or 1 << 30))
            outcomes = [run(op, sample, dtype, differentiable(op, dtype)) for sample in chosen]
        if name == "float32" and differentiable(op, dtype):
            name = "gradient"
        found[name] = [(one.kind, one.reason) for one in outcomes]
    jax.clear_caches()
    return found


def tolerances(op: Any, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the largest relative and absolute difference that the database grants an operator on the CPU."""
    rtol, atol = _TOLERANCES.get(dtype, (0.0, 0.0))
    for info in op.decorators:
        if isinstance(info, DecorateInfo):
            decorators = info.decorators if info.device_type in (None, "cpu") else []
        else:
            decorators = [info]  # of every test and device
        for decorator in decorators:
            if isinstance(decorator, toleranceOverride | precisionOverride):
                given = decorator.d.get(dtype)
                rtol = max(rtol, getattr(given, "rtol", 0.0))
                atol = max(atol, getattr(given, "atol", given or 0.0) if given is not None else 0.0)
    return rtol, atol


def samples(op: Any, dtype: torch.dtype, most: int) -> list[Any]:
    """Returns the database's samples; of more than `most`, some that are spread evenly over them."""
    with quiet():
        torch.manual_seed(0)
        found = list(op.sample_inputs("cpu", dtype, requires_grad=differentiable(op, dtype)))
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / max(most - 1, 1))] for i in range(most)]


def differentiable(op: Any, dtype: torch.dtype) -> bool:
    """Whether torch has a gradient of the operator."""
    return bool(op.supports_autograd) and dtype in op.supported_backward_dtypes("cpu")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Torch deprecates much of what its database still holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Case:
    """A sample: a function, its tensors, and what torch says."""

    def __init__(self, op: Any, sample: Any) -> None:
        self.op = op
        leaves, self.structure = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        # The graph's inputs are tensors that lie densely in memory.
        self.leaves = [
            leaf.detach().clone().requires_grad_(leaf.requires_grad)
            if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and not leaf.is_quantized
            else leaf
            for leaf in leaves
        ]
        tensors = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]
        self.differentiated = [place for place in tensors if self.leaves[place].requires_grad]
        self.others = [place for place in tensors if place not in self.differentiated]
        self.process = sample.output_process_fn_grad

    def __call__(self, differentiated: Any, others: Any) -> list[torch.Tensor]:
        """Calls the operator; returns the tensors of its result, flat."""
        leaves = list(self.leaves)
        for places, tensors in ((self.differentiated, differentiated), (self.others, others)):
            for place, tensor in zip(places, tensors, strict=True):
                leaves[place] = tensor
        value, args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        found = self.op.op(value, *args, **kwargs)
        found = self.process(found) if self.process is not None else found
        return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]

    def tensors(self, places: list[int]) -> list[torch.Tensor]:
        """Returns the tensors at places, without what was computed of them before."""
        return [self.leaves[place].detach().clone() for place in places]


def in_torch(case: Case, gradient: bool, seeds: Any = None) -> tuple[list[Any], list[Any], list[Any]]:
    """Returns torch's outputs, the cotangents it was given, and its gradients."""
    torch.manual_seed(0)
    given = [tensor.requires_grad_(gradient) for tensor in case.tensors(case.differentiated)]
    with quiet():
        outputs = case([tensor * 1 for tensor in given] if gradient else given, case.tensors(case.others))
        roots = [(place, one) for place, one in enumerate(outputs) if gradient and one.requires_grad]
        torch.manual_seed(1)
        given_seeds = seeds
        seeds = {
            place: given_seeds[place].to(one.dtype) if given_seeds else torch.randn(one.shape, dtype=one.dtype)
            for place, one in roots
        }
        gradients: list[Any] = [None] * len(given)
        if roots:
            gradients = list(
                torch.autograd.grad([one for _, one in roots], given, [*seeds.values()], allow_unused=True)
            )
    return outputs, [seeds.get(place) for place in range(len(outputs))], gradients


def in_jax(graph: Graph, case: Case, seeds: list[Any], gradient: bool) -> tuple[list[Any], list[Any], bool]:
    """Runs a captured graph as one compiled program; with its gradients where there are seeds."""
    program = Program(graph)
    nodes = [node for node in program.nodes if node.op not in ("placeholder", "output")]
    given = [node for node in nodes if node.target is _COTANGENT]
    outputs, gradients = program.outputs, []
    if gradient:
        outputs, gradients, _ = graph.nest(program.outputs)

    def compute(inputs: list[Any], seeds: list[Any], key: jax.Array) -> tuple[list[Any], list[Any]]:
        values: dict[Node, Any] = dict(zip(program.inputs, inputs, strict=True))
        values |= {node: seeds[node.args[1]] for node in given}
        program.run([node for node in nodes if node not in given], values, key)
        read = lambda one: None if one is None else program.value(one, values)  # noqa: E731
        return [read(one) for one in outputs], [read(one) for one in gradients]

    inputs = [to_jax(one) for one in [*case.tensors(case.differentiated), *case.tensors(case.others)]]
    found = jax.jit(compute)(inputs, [None if seed is None else to_jax(seed) for seed in seeds], jax.random.key(0))
    return *found, program.is_random


def run(op: Any, sample: Any, dtype: torch.dtype, gradient: bool) -> Outcome:
    """Compares one sample; a float32 one that differs counts as right where it is rounding that differs."""
    found = _run(op, sample, dtype, gradient)
    if found.kind == "wrong" and dtype is torch.float32 and _is_rounding(op, sample, gradient):
        return Outcome("passes", f"rounding: {found.reason}")
    return found


def _is_rounding(op: Any, sample: Any, gradient: bool) -> bool:
    """Whether float64 agrees on the same values, and float32 is about as far from float64 as torch's own is."""
    wide = sample.transform(
        lambda leaf: (
            leaf.detach().double().requires_grad_(leaf.requires_grad)
            if isinstance(leaf, torch.Tensor) and leaf.dtype is torch.float32
            else torch.float64
            if leaf is torch.float32
            else leaf
        )
    )
    with jax.enable_x64(True):
        if _run(op, wide, torch.float64, gradient).kind != "passes":
            return False
    narrow_case, wide_case = Case(op, sample), Case(op, wide)
    theirs, seeds, their_gradients = in_torch(narrow_case, gradient)
    gradient = gradient and any(seed is not None for seed in seeds)
    truth, _, true_gradients = in_torch(wide_case, gradient, seeds)
    capturing = capture_with_gradients if gradient else capture
    arguments = narrow_case.tensors(narrow_case.differentiated), narrow_case.tensors(narrow_case.others)
    ours, our_gradients, _ = in_jax(capturing(narrow_case, *arguments), narrow_case, seeds, gradient)
    for one, other, true in zip(
        [*ours, *our_gradients], [*theirs, *their_gradients], [*truth, *true_gradients], strict=True
    ):
        if true is None or not true.dtype.is_floating_point or not true.numel():
            continue
        true = true.detach().numpy()
        off, torchs = (np.nan_to_num(np.abs(np.asarray(x) - true)) for x in (one, other.detach().numpy()))
        if off.max() > max(8 * torchs.max(), 1e-4 * np.abs(true).max(initial=0, where=np.isfinite(true))):
            return False
    return True


def _run(op: Any, sample: Any, dtype: torch.dtype, gradient: bool) -> Outcome:
    """Compares one sample."""
    try:
        case = Case(op, sample)
        theirs, seeds, their_gradients = in_torch(case, gradient)
    except Exception as error:
        return Outcome("no array", f"torch itself: {_short(error)}")
    if op.name == "bincount":
        return Outcome("values", "as many places as the largest value says")
    try:
        if any(
            isinstance(leaf, torch.Tensor) and (leaf.layout is not torch.strided or leaf.is_quantized)
            for leaf in case.leaves
        ):
            return Outcome("no array", "a sparse or quantized tensor")
        if gradient and not any(seed is not None for seed in seeds):
            gradient = False
        for one in theirs:
            if one.layout is not torch.strided or one.is_quantized:
                return Outcome("no array", "a sparse or quantized tensor")
            jax_dtype(one.dtype)
        with quiet():
            others = case.tensors(case.others)
            differentiated = case.tensors(case.differentiated)
            if gradient:
                graph = capture_with_gradients(case, differentiated, others)
            else:
                graph = capture(case, differentiated, others)
            ours, our_gradients, random = in_jax(graph, case, seeds, gradient)
    except ConversionError as error:
        return Outcome("no array", _short(error))
    except UnsupportedOperatorError as error:
        return Outcome("missing", _short(error))
    except CaptureError as error:
        text = str(error)
        if "asks for the value" in text or "depends on values" in text:
            return Outcome("values", _short(error))
        return Outcome("no array" if "makes a sparse tensor" in text else "missing", _short(error))
    except Exception as error:
        return Outcome("missing", f"{type(error).__name__}: {_short(error)}")
    if random or op.name.startswith(("empty", "new_empty")):
        same = [tuple(one.shape) for one in theirs] == [one.shape for one in ours]
        return Outcome("random") if same else Outcome("wrong", "another shape")
    for what, found, expected in (("output", ours, theirs), ("gradient", our_gradients, their_gradients)):
        if len(found) != len(expected):
            return Outcome("wrong", f"{len(found)} {what}s, not {len(expected)}")
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            if op.name in _TIES and not dtype.is_floating_point and (place or op.name == "argsort"):
                continue
            if said := difference(op, one, other):
                return Outcome("wrong", f"{what} {place}: {said}")
    return Outcome("passes")


def _short(error: BaseException) -> str:
    """Says what was said, without the place of this file on this machine and the way out for users."""
    said = " ".join(str(error).split()).partition(". Register one")[0]
    return re.sub(r"( at |, )?/\S+\.py:\d+( in \S+:|:)? ?", "", said)[:300]


def difference(op: Any, ours: Any, theirs: Any) -> str:
    """Says how an array differs from a tensor; nothing if it does not."""
    if theirs is None or ours is None:
        given = theirs if ours is None else ours
        if given is None or not np.any(np.asarray(given.detach() if isinstance(given, torch.Tensor) else given)):
            return ""  # no gradient, or zeros
        return "a gradient on one side only"
    if tuple(theirs.shape) != ours.shape:
        return f"shape {ours.shape}, not {tuple(theirs.shape)}"
    if jax_dtype(theirs.dtype) != ours.dtype:
        return f"dtype {ours.dtype}, not {theirs.dtype}"
    expected = theirs.detach().resolve_conj().resolve_neg()
    expected = (
        np.asarray(jnp.asarray(expected.float().numpy()))
        if expected.dtype is torch.bfloat16
        else expected.numpy(force=True)
    )
    found = np.asarray(ours).astype(expected.dtype)
    rtol, atol = tolerances(op, theirs.dtype)
    if rtol == atol == 0:
        same = found == expected
        same |= (found != found) & (expected != expected)
    else:
        same = np.isclose(found, expected, rtol=rtol, atol=atol, equal_nan=True)
    if same.all():
        return ""
    where = tuple(int(i) for i in np.argwhere(~same)[0]) if same.ndim else ()
    return f"{found[where]} at {where}, not {expected[where]} ({(~same).sum()} of {same.size} differ)"
