"""The tensors on a module's attributes while a hook runs on the host: what the hook sees, and what it did to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import torch

from lightjax_torch.arrays import jax_dtype, to_jax, to_torch
from lightjax_torch.captured_step import CARRIES
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.module_state import ModuleState

_MISSING: Any = object()


class AttributesOfSteps:
    """Lends a hook the tensors that steps leave on attributes, and finds what it replaced.

    Args:
      tensors: the module's tensors by name; parameters, buffers and attributes hold the state's values.
      carried: names of those that a step leaves for the next one.
      model_state: the state's.
    """

    def __init__(self, tensors: ModuleState, carried: Sequence[str], model_state: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._state = {name: model_state[name] for name in carried}
        self._carrying = bool(carried) and bool(model_state[CARRIES])
        self._places = {_place(name) for name in carried}
        self._given = {one: tensors.module.get_submodule(one[0]).__dict__.get(one[1], _MISSING) for one in self._places}
        self._known = tensors.parameters | tensors.buffers | tensors.attributes
        self._strange = {n: id(t) for n, t in tensors.read_attributes().items() if n not in self._known}

    def lend(self) -> None:
        """Puts what the last step left on the module's attributes."""
        if self._carrying:
            for name, tensor in to_torch(self._state).items():
                self._tensors.put(name, tensor.clone(), self._tensors.structures)

    def take_back(self, hook: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[str]]:
        """Looks at what a hook did; the module has its own attributes again.

        Args:
          hook: its name.

        Returns:
          The tensors now in the places of the module's; what changed of those that steps leave for the next one, as
          model state; the names of tensors that are neither, and that the hook put on attributes or took off.

        Raises:
          CaptureError: the hook replaced a tensor by one of another shape, or a parameter.
        """
        attributes = self._tensors.read_attributes()
        now: dict[str, Any] = dict(self._tensors.read([*self._tensors.parameters, *self._tensors.buffers]))
        now |= {name: attributes.get(name) for name in self._tensors.attributes}
        for name, tensor in self._known.items():
            found = now[name]
            if found is not tensor and (
                name in self._tensors.parameters or name in self._tensors.aliases.values() or not _alike(found, tensor)
            ):
                raise CaptureError(
                    f"{hook} puts something else in the place of {_shown(name)}; what a compiled step trains and "
                    f"reads keeps its place, shape and dtype: write into it, .copy_(...), or {WAY_OUT}."
                )
        of_steps = self._changes(hook, attributes)
        self.restore()
        rest = {n: id(t) for n, t in attributes.items() if n not in self._known and n not in self._state}
        before = {n: one for n, one in self._strange.items() if n not in self._state}
        strange = [_shown(n) for n in {*rest, *before} if rest.get(n) != before.get(n)]
        return now, of_steps, sorted(set(strange))

    def restore(self) -> None:
        """Puts the module's own tensors and attributes back."""
        for name, tensor in self._known.items():
            if name not in self._tensors.parameters:
                self._tensors.put(name, tensor, self._tensors.structures)
        for (path, name), value in self._given.items():
            attributes = self._tensors.module.get_submodule(path).__dict__
            if value is _MISSING:
                attributes.pop(name, None)
            else:
                attributes[name] = value

    def _changes(self, hook: str, attributes: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        if not self._state:
            return {}
        left = [name for name in self._state if name in attributes]
        extra = [name for name in attributes if name not in self._state and _place(name) in self._places]
        if not left and not extra and all(self._as_given(one) for one in self._places):
            return {CARRIES: jnp.zeros((), bool)} if self._carrying else {}
        new = {name: attributes[name] for name in left}
        if len(left) < len(self._state) or extra or not all(_fits(new[n], held) for n, held in self._state.items()):
            names = ", ".join(sorted({_shown(name) for name in self._state}))
            raise CaptureError(
                f"{hook} changes {names}, which steps leave for the next one, to something of another form. It may "
                "write other values, or put all of them back to what they are before the first step (such as None); "
                f"or {WAY_OUT}."
            )
        arrays = {name: jnp.asarray(to_jax(value.detach().clone())) for name, value in new.items()}
        if self._carrying and all(bool((arrays[name] == held).all()) for name, held in self._state.items()):
            return {}
        return arrays | {CARRIES: jnp.ones((), bool)}

    def _as_given(self, place: tuple[str, str]) -> bool:
        found = self._tensors.module.get_submodule(place[0]).__dict__.get(place[1], _MISSING)
        given = self._given[place]
        plain = isinstance(given, bool | int | float | str | tuple | list) and type(found) is type(given)
        return found is given or (plain and found == given)


def _place(name: str) -> tuple[str, str]:
    """Splits `path:name/number`."""
    path, _, rest = name.partition(":")
    return path, rest.rpartition("/")[0]


def _shown(name: str) -> str:
    path, colon, rest = name.partition(":")
    return f"{path}.{rest.rpartition('/')[0]}".removeprefix(".") if colon else name


def _alike(one: Any, other: torch.Tensor) -> bool:
    return isinstance(one, torch.Tensor) and one.shape == other.shape and one.dtype == other.dtype


def _fits(tensor: torch.Tensor, held: Any) -> bool:
    return tuple(tensor.shape) == held.shape and jax_dtype(tensor.dtype) == held.dtype
