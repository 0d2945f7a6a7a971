"""Passes: how a loader is passed over, and how one comes back to a place in a pass.

What a loader can say of its place decides how a resumed run finds it again:

- `state_dict` and `load_state_dict` on the loader (torchdata), or `get_state` and `set_state` on its iterator (grain):
  the loader is asked, and goes there at once.
- torch's DataLoader with a `generator`: the generator's state when the pass began is the mark, and the batches since
  are read again.
- A sequence of batches, or torch's DataLoader without shuffling: every pass is the same.
- Anything else is read again from the very first batch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lightjax.data.position import decode, encode
from lightjax.data.workers import iterate


class Pass:
    """A pass over a loader under way.

    Args:
      batches: what is left of it.
      mark: says where `batches` is, as something `encode` takes; None where nobody can say.
      begun: the mark of the place where `batches` is now; asked of `mark` when None.
    """

    def __init__(self, batches: Iterator[Any], mark: Callable[[], Any] | None = None, begun: Any = None) -> None:
        self._batches = batches
        self._ask = mark
        self._mark = encode(mark()) if mark is not None else begun
        self._read = 0
        self._held: list[Any] = []

    def next(self) -> Any:
        """Returns the next batch, None at the end."""
        batch = self._held.pop() if self._held else next(self._batches, None)
        self._read += batch is not None
        return batch

    def hold(self, batch: Any) -> None:
        """Gives a batch back, to be the next one."""
        self._held.append(batch)
        self._read -= 1

    def note(self) -> None:
        """Asks the loader where it is, so that less is read again from there."""
        if self._ask is not None and not self._held:
            self._mark, self._read = encode(self._ask()), 0

    def place(self) -> dict[str, Any] | None:
        """Returns the place of the next batch as JSON: a mark and the batches since; None where nobody can say."""
        return None if self._mark is None else {"mark": self._mark, "read": self._read}


def begin(loader: Any, epoch: int) -> Pass:
    """Begins a pass.

    Args:
      loader: anything to iterate over.
      epoch: told to samplers that want to know it (`set_epoch`).
    """
    _set_epoch(loader, epoch)
    _parse_flags_of_grain(loader)
    generators = _generators(loader)
    if _is_stateful(loader):
        batches = iterate(loader)
        return Pass(batches, lambda: {"loader": loader.state_dict(), "generators": _states(generators)})
    if generators:
        # Before the pass draws from them; workers that persist are started once, which draws once more.
        begun = encode({"generators": _states(generators), "starts_workers": not _has_workers(loader)})
        return Pass(iterate(loader), begun=begun)
    batches: Any = iterate(loader)
    if hasattr(batches, "get_state") and hasattr(batches, "set_state"):
        return Pass(batches, lambda: {"iterator": batches.get_state()})
    return Pass(batches)


def begin_at(loader: Any, epoch: int, mark: Any) -> Pass:
    """Begins a pass at a mark that a pass over such a loader had.

    Args:
      loader: a loader of the kind that was marked; see `are_alike`.
      epoch: the epoch of the pass.
      mark: of its place.
    """
    _set_epoch(loader, epoch)
    known, generators = decode(mark), _generators(loader)
    if "loader" in known:
        loader.load_state_dict(known["loader"])
        batches = iterate(loader)
        # torchdata draws from the generator when it begins a pass, also one that goes on: what it draws later would be
        # shifted.
        set_generators(loader, mark)
        return Pass(batches, lambda: {"loader": loader.state_dict(), "generators": _states(generators)})
    if "iterator" in known:
        batches: Any = iterate(loader)
        batches.set_state(known["iterator"])
        return Pass(batches, lambda: {"iterator": batches.get_state()})
    if known["starts_workers"] and _has_workers(loader):
        loader._iterator = None
    set_generators(loader, mark)
    return Pass(iterate(loader), begun=mark)


def begin_later(loader: Any, epoch: int, batch: int) -> Pass | None:
    """Begins a pass at a batch, where every pass of an epoch is the same; None where that is not known."""
    if getattr(loader, "can_seek", False):
        return Pass(loader.epoch(epoch, batch))
    if isinstance(loader, Sequence):
        return Pass(loader[i] for i in range(batch, len(loader)))
    if not _passes_are_alike(loader):
        return None
    found = begin(loader, epoch)
    while batch and found.next() is not None:
        batch -= 1
    return found


def mark_of_generators(loader: Any) -> Any:
    """Returns the mark between two passes; None where the loader has no generators of its own."""
    generators = _generators(loader)
    return encode({"generators": _states(generators)}) if generators and not _is_stateful(loader) else None


def set_generators(loader: Any, mark: Any) -> None:
    """Puts the generators of a loader back to where they were at a mark."""
    for generator, state in zip(_generators(loader), decode(mark)["generators"], strict=True):
        tensor = generator.get_state()
        np.asarray(tensor)[...] = state
        generator.set_state(tensor)


def are_alike(one: Any, other: Any) -> bool:
    """Says whether two places are marked in the same way: those of loaders of one kind are."""
    return (one and next(iter(one["mark"]))) == (other and next(iter(other["mark"])))


def has_order_of_chance(loader: Any) -> bool:
    """Says whether a loader shuffles by a global generator, so that nobody can say in which order it was read."""
    return not _is_stateful(loader) and any(
        hasattr(sampler, "generator") and sampler.generator is None for sampler in _samplers(loader)
    )


def _is_stateful(loader: Any) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _samplers(loader: Any) -> list[Any]:
    """Returns what decides the order of a torch DataLoader, or of those in a `CombinedLoader`; [] for any other."""
    if members := getattr(loader, "members", None):
        return [one for member in members for one in (member, *_samplers(member)) if _samplers(member)]
    if not (hasattr(loader, "sampler") and hasattr(loader, "batch_sampler") and hasattr(loader, "dataset")):
        return []
    return [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]


def _generators(loader: Any) -> list[Any]:
    """Returns a loader's own random generators, each once."""
    if not (samplers := _samplers(loader)):
        return []
    found = {id(generator): generator for one in (loader, *samplers) if (generator := getattr(one, "generator", None))}
    return list(found.values())


def _has_workers(loader: Any) -> bool:
    """Says whether a DataLoader keeps worker processes from an earlier pass."""
    return getattr(loader, "_iterator", None) is not None


def _states(generators: list[Any]) -> list[Any]:
    return [np.asarray(generator.get_state()) for generator in generators]


def _passes_are_alike(loader: Any) -> bool:
    """Says whether the order of a torch DataLoader depends on the epoch alone."""
    samplers = [one for one in _samplers(loader) if one is not None]
    return bool(samplers) and all(
        type(one).__name__ in ("SequentialSampler", "BatchSampler") or hasattr(one, "set_epoch") for one in samplers
    )


def _set_epoch(loader: Any, epoch: int) -> None:
    """Tells the epoch to whoever shuffles by it: distributed samplers, streaming data sets."""
    for one in {id(one): one for one in (loader, *_samplers(loader), getattr(loader, "dataset", None))}.values():
        if callable(tell := getattr(one, "set_epoch", None)):
            tell(epoch)


def _parse_flags_of_grain(loader: Any) -> None:
    """Lets grain start worker processes: it reads a flag of absl, which refuses in programs that parse none."""
    if (
        type(loader).__module__.partition(".")[0] == "grain"
        and not (flags := sys.modules["absl.flags"].FLAGS).is_parsed()
    ):
        flags.mark_as_parsed()
