"""The tensors of a module by name, put in and taken out while it is captured, and everything left as it was."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as pytree

from lightjax.errors import ConfigurationError
from lightjax_torch.arrays import jax_dtype, to_jax
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.metric_objects import MetricObjects, is_collection, is_metric_object

# In the place of a number that only exists while a step runs.
OF_THE_STEP = "a value of the step"

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_WHOLE = (torch.Tensor, torch.nn.Module, torch.Generator, torch.optim.Optimizer, types.ModuleType, *_SYMBOLIC)
_MOST_LEAVES = 1000
# What Lightning notes for itself.
_LIGHTNINGS = {"_trainer", "_current_fx_name", "_jit_is_scripting", "_metric_attributes", "_fabric", "training"}
_MACHINERY = {
    "_parameters",
    "_buffers",
    "_modules",
    "_flat_weights",
    "_flat_weight_refs",
    "_non_persistent_buffers_set",
}


class ModuleState:
    """What a module's tensors are called.

    Attributes:
      parameters: by the first name `state_dict` has for them.
      buffers: likewise, buffers that are not persistent included.
      attributes: tensors kept on plain attributes, alone or in lists, tuples and dicts: `path:name/number`.
      aliases: further names of tied tensors, and the first name of each.
      metrics: the metric objects in the module; their states are none of the module's.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        # As they are now: whoever gets the trained module back may put it into evaluation mode.
        self._modes = [(one, one.training) for one in module.modules()]
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for named, found in (
            (module.named_parameters(remove_duplicate=False), self.parameters),
            (module.named_buffers(remove_duplicate=False), self.buffers),
        ):
            for name, tensor in named:
                if id(tensor) in first:
                    self.aliases[name] = first[id(tensor)]
                else:
                    first[id(tensor)] = name
                    found[name] = tensor
        self._owned = set(first)
        self.metrics = MetricObjects(module)
        # How the tensors of an attribute nest, by `path:name`.
        self.structures: dict[str, pytree.TreeSpec] = {}
        self.attributes = self.read_attributes()

    def read_attributes(self) -> dict[str, torch.Tensor]:
        """Returns the tensors on plain attributes as they are now."""
        found: dict[str, torch.Tensor] = {}
        for path, module in self.module.named_modules():
            if is_metric_object(module) or is_collection(module):
                continue
            held = {id(tensor) for tensor in (*module._parameters.values(), *module._buffers.values())}
            for name, value in module.__dict__.items():
                if name in _MACHINERY or isinstance(value, torch.nn.Module):
                    continue
                leaves, structure = pytree.tree_flatten(value)
                if leaves and all(isinstance(leaf, torch.Tensor) for leaf in leaves):
                    self.structures[f"{path}:{name}"] = structure
                    for number, leaf in enumerate(leaves):
                        if id(leaf) not in self._owned and id(leaf) not in held:
                            found[f"{path}:{name}/{number}"] = leaf
        return found

    @property
    def on_meta(self) -> list[str]:
        """Names of the tensors that are on the meta device, where nothing has values."""
        known = self.parameters | self.buffers | self.attributes
        return [name for name, tensor in known.items() if tensor.device.type == "meta"]

    def check_values(self) -> None:
        """Refuses tensors without values.

        Raises:
          ConfigurationError: some are on the meta device.
        """
        if found := self.on_meta:
            raise ConfigurationError(
                f"{found[0]!r} and {len(found) - 1} more tensors are on the meta device and have no values; such a "
                "module can be planned, trainer.plan(task, batch). To train it, materialize it: make it outside of "
                "`with torch.device('meta')`, or module.to_empty(device='cpu') and load weights."
            )

    def arrays(self, names: Sequence[str]) -> dict[str, jax.Array]:
        """Returns tensors as arrays; what has no values is NaN, or 0."""
        known = self.parameters | self.buffers | self.attributes
        values = to_jax({name: known[name] for name in names if known[name].device.type != "meta"})

        def without(tensor: torch.Tensor) -> jax.Array:
            inexact = tensor.is_floating_point() or tensor.is_complex()
            return jnp.full(tuple(tensor.shape), jnp.nan if inexact else 0, jax_dtype(tensor.dtype))

        return {name: values[name] if name in values else without(known[name]) for name in names}

    def restore_modes(self) -> None:
        """Puts every part of the module into the mode, training or evaluation, that it was given in."""
        for one, training in self._modes:
            one.training = training

    @contextlib.contextmanager
    def holding(
        self, tensors: Mapping[str, torch.Tensor], structures: Mapping[str, pytree.TreeSpec] | None = None
    ) -> Iterator[None]:
        """Puts tensors in the places of parameters, buffers and attributes; tied places get the same one."""
        everything = dict(tensors) | {name: tensors[first] for name, first in self.aliases.items() if first in tensors}
        for name, tensor in everything.items():
            self.put(name, tensor, structures or self.structures)
        for module in self.module.modules():
            if isinstance(module, torch.nn.RNNBase):
                module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
        yield

    def read(self, names: Any) -> dict[str, torch.Tensor]:
        """Returns the tensors that are in the places of parameters and buffers now."""
        found: dict[str, torch.Tensor] = {}
        for name in names:
            path, _, last = name.rpartition(".")
            owner = self.module.get_submodule(path)
            value = owner._parameters.get(last)
            found[name] = getattr(owner, last) if value is None else value
        return found

    def put(self, name: str, tensor: torch.Tensor, structures: Mapping[str, pytree.TreeSpec]) -> None:
        """Puts a tensor in the place of a parameter, a buffer or a part of an attribute."""
        path, colon, rest = name.partition(":")
        if colon:
            owner, (attribute, _, number) = self.module.get_submodule(path), rest.rpartition("/")
            structure = structures[f"{path}:{attribute}"]
            leaves = pytree.tree_leaves(owner.__dict__.get(attribute))
            if len(leaves) != structure.num_leaves:
                leaves = [tensor] * structure.num_leaves
            leaves[int(number)] = tensor
            owner.__dict__[attribute] = pytree.tree_unflatten(leaves, structure)
            return
        path, _, last = name.rpartition(".")
        owner = self.module.get_submodule(path)
        places: dict[str, Any] = owner._parameters if last in owner._parameters else owner._buffers  # pyright: ignore
        places[last] = tensor


def names_in_code(module: torch.nn.Module, name: str) -> bool:
    """Says whether a method of the module's class, or of a class between it and torch's, mentions a name."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith(("torch.", "lightning.", "pytorch_lightning.", "lightjax_torch.")):
            continue
        codes = [value.__code__ for value in vars(kind).values() if isinstance(value, types.FunctionType)]
        while codes:
            code = codes.pop()
            codes += [one for one in code.co_consts if isinstance(one, types.CodeType)]
            if name in code.co_names:
                return True
    return False


def python_values(module: torch.nn.Module) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Returns what modules keep in Python: numbers, texts and the identity of whatever else, by path and name.

    The contents of containers and of plain objects are looked at, tensors alone are not: those are state.
    """
    found: dict[tuple[str, str], tuple[Any, ...]] = {}
    for path, one in module.named_modules():
        if isinstance(one, torch.jit.ScriptModule) or is_metric_object(one) or is_collection(one):
            continue
        for name, value in one.__dict__.items():
            torchs = name.startswith("_") and type(one).__module__.startswith("torch.nn.")
            if torchs or name in _MACHINERY or name in _LIGHTNINGS or isinstance(value, torch.nn.Module):
                continue
            leaves = _leaves(value, 3)
            if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
                found[path, name] = tuple(map(_told_apart, leaves))
    return found


def made_submodules(module: torch.nn.Module, part: str, before: Mapping[str, torch.nn.Module]) -> set[str]:
    """Returns the paths of submodules that were not there before; such as a loss made anew in every step.

    Raises:
      CaptureError: one has weights or buffers.
    """
    made = {path: one for path, one in module.named_modules() if before.get(path) is not one}
    if built := [path for path, one in made.items() if [*one.parameters(), *one.buffers()]]:
        raise CaptureError(
            f"{type(module).__name__}.{part} makes submodules with weights or buffers: {', '.join(built[:3])}. A "
            "compiled step has the modules it began with: call the module once on a batch before porting it, "
            f"torch.no_grad() around it, or {WAY_OUT}."
        )
    return set(made)


def _leaves(value: Any, depth: int) -> list[Any]:
    leaves = pytree.tree_leaves(value)[:_MOST_LEAVES]
    if depth == 0:
        return leaves
    found: list[Any] = []
    for leaf in leaves:
        # Objects of the user's: meters, configurations.
        plain = hasattr(leaf, "__dict__") and not callable(leaf) and not isinstance(leaf, _WHOLE)
        found += _leaves(dict(vars(leaf)), depth - 1) if plain else [leaf]
    return found


def _told_apart(leaf: Any) -> Any:
    if leaf is None or isinstance(leaf, bool | int | float | complex | str | bytes):
        return type(leaf), repr(leaf)
    if isinstance(leaf, _SYMBOLIC):
        return OF_THE_STEP
    return id(leaf)


@contextlib.contextmanager
def unchanged(module: torch.nn.Module) -> Iterator[None]:
    """Puts every attribute of a module and its submodules back at the end, and the contents of dicts, lists and sets.

    The contents matter: a library that installs hooks while the module first runs writes them into a dict.
    """
    before = []
    for one in module.modules():
        if not isinstance(one, torch.jit.ScriptModule):
            held = {key: _copy(value) for key, value in one.__dict__.items() if isinstance(value, dict | list | set)}
            before.append((one, dict(one.__dict__), held))
    try:
        yield
    finally:
        for one, attributes, held in before:
            for key, contents in held.items():
                _put_back(attributes[key], contents)
            one.__dict__.clear()
            one.__dict__.update(attributes)


def _copy(container: Any) -> Any:
    """Copies the outermost level, into a plain container: classes of libraries may refuse to be copied or changed."""
    return next(plain(container) for plain in (dict, list, set) if isinstance(container, plain))


def _put_back(container: Any, contents: Any) -> None:
    if _told(container) == _told(contents):
        return
    if isinstance(container, list):
        container[:] = contents
    else:
        container.clear()
        container.update(contents)


def _told(container: Any) -> Any:
    """What tells the contents of containers apart."""
    if isinstance(container, dict):
        return [(id(key), id(value)) for key, value in container.items()]
    return [*map(id, container)] if isinstance(container, list) else {*map(id, container)}
