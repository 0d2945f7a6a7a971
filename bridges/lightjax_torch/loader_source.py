"""LoaderSource: a loader read batch by batch, as it is, in step with the training.

Nothing is read ahead of the step that needs it: a torch program draws the order of its data, its augmentation and its
dropout from the same global generators, and reading early would shift them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from lightjax.data import passes
from lightjax.data.grouped import Accumulation
from lightjax.data.passes import Pass
from lightjax.data.position import decode, encode
from lightjax.data.stretch import Cursor, Stretch
from lightjax.data.workers import iterate
from lightjax.errors import CheckpointError, ConfigurationError, DataError
from lightjax_torch import random_states
from lightjax_torch.samplers import with_sampler

# A loader is asked for its place every so many batches; the batches since are read again when a run is resumed.
BATCHES_BETWEEN_MARKS = 16


class Batches(NamedTuple):
    """The batches of one optimizer step.

    Attributes:
      items: as the loader gives them, the first one read; once.
      size: how many there are.
      first: number of the first one in the epoch.
      last: whether the epoch ends with them.
    """

    items: Iterator[Any]
    size: int
    first: int
    last: bool
    capacity: int = 1


class LoaderSource:
    """Stretches of one optimizer step each, of anything that can be iterated over.

    Args:
      data: a loader, a list of batches, or a function that returns an iterable.
      name: what the user calls it.
      limit: batches of an epoch at most: a number, or a fraction.
      accumulation: how many batches make a step.

    Raises:
      DataError: `data` is no loader, or a fraction is asked of one without length.
    """

    def __init__(
        self,
        data: Any,
        name: str,
        limit: int | float | None = None,
        accumulation: Accumulation | None = None,
    ) -> None:
        if isinstance(data, str | bytes) or not (
            callable(data) or isinstance(data, Iterable) or hasattr(data, "__getitem__")
        ):
            raise DataError(
                f"{name} is a {type(data).__name__}, which is no loader; pass a DataLoader, a list of batches, or a "
                "generator function."
            )
        self.name = name
        self._data = data
        self._accumulation = accumulation or Accumulation()
        length = _length(data)
        if isinstance(limit, float) and limit != 1.0 and length is None:
            raise DataError(
                f"{limit} of {name} was asked for, but the loader has no length to take a fraction of; give a number "
                "of batches."
            )
        self._limit = limit if isinstance(limit, int) else None
        if isinstance(limit, float) and length is not None:
            self._limit = max(1, int(length * limit))
        known = [number for number in (self._limit, length) if number is not None]
        self._batches = min(known) if length is not None else None
        self._cut: int | None = None
        self.own_place: Any = None
        self._begun: _Reading | None = None

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, None where the loader does not say; fewer in an epoch that was cut."""
        return self._batches if self._cut is None else self._cut

    def cut_at(self, batch: int) -> None:
        """Ends the present epoch after a batch."""
        self._cut = batch

    def first(self) -> Any:
        """Returns an empty batch: the engine compiles nothing for shapes."""
        return {}

    def begin(self, epoch: int) -> None:
        """Begins the pass of an epoch, which draws its order, before `epoch` asks for it."""
        if self._begun is None:
            self._begun = self._read(epoch)

    def draw(self) -> None:
        """Draws what beginning a pass draws, in vain."""
        passes.begin(self._open(), 0)

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at the beginning of an epoch, or where `resume` left it."""
        self._cut = None
        found, self._begun = self._begun or self._read(index), None
        return _Cursor(self, found, index, start)

    def resume(self, epoch: int, batch: int, place: Any, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Goes to a batch of an epoch, reading again what the loader cannot skip, from the same random numbers.

        The engine sets the random numbers that the training goes on with.
        """
        if epoch == batch == 0:
            return
        # Where this process was; the place that the run kept is that of process 0.
        place = self.own_place or place
        if place is None:
            raise CheckpointError(
                f"The checkpoint says nothing of where {self.name} was: it is not of a run of a torch module; begin a "
                "new run with its weights."
            )
        if batch:
            self._begun = self._read_at(epoch, batch, place, stop)
        elif place["after"] is not None:
            passes.set_generators(self._data, place["after"])

    def after_pass(self, place: Any) -> Any:
        """Returns the place between two passes."""
        return {"after": passes.mark_of_generators(self._data)}

    def inexact(self) -> None:
        """Returns None: the random numbers that decide the order are kept with the place."""

    def specs(self, capacity: int) -> list[Any]:
        """Returns []: nothing is compiled for shapes."""
        return []

    def group(self, epoch: int) -> int:
        """Returns the batches of a step in an epoch."""
        return self._accumulation.at(epoch)

    @property
    def limit(self) -> int | None:
        """Batches of an epoch at most."""
        return self._limit

    def _open(self) -> Any:
        return self._data() if callable(self._data) and not isinstance(self._data, Iterable) else self._data

    def _read(self, epoch: int) -> _Reading:
        random = encode(random_states.states())
        return _Reading(passes.begin(self._open(), epoch), random)

    def _read_at(self, epoch: int, batch: int, place: Any, stop: Callable[[], bool]) -> _Reading:
        random_states.set_states(decode(place["random"]))
        loader, mark = self._open(), place["loader"]
        if mark is None:
            found, left = passes.begin(loader, epoch), batch
        else:
            found, left = passes.begin_at(loader, epoch, mark["mark"]), mark["read"]
        for _ in range(left):
            if stop():
                break
            if found.next() is None:
                raise CheckpointError(
                    f"{self.name} ended before batch {batch} of epoch {epoch}, where the checkpoint is; pass the data "
                    "that the run began with."
                )
        return _Reading(found, place["random"])


class _Reading:
    """A pass over the loader, and the random numbers it began with."""

    def __init__(self, batches: Pass, random: Any) -> None:
        self.batches = batches
        self.random = random

    def place(self) -> dict[str, Any]:
        return {"random": self.random, "loader": self.batches.place()}


class _Cursor:
    def __init__(self, source: LoaderSource, reading: _Reading, epoch: int, start: int) -> None:
        self.source, self.reading, self.epoch = source, reading, epoch
        self.number = start
        self.group = source.group(epoch)

    def take(self, most: int, capacity: int) -> Stretch | None:
        """Returns the batches of one step; None at the end of the epoch."""
        if self.source.batches is not None and self.number >= self.source.batches:
            return None
        if self.number % BATCHES_BETWEEN_MARKS == 0:
            self.reading.batches.note()
        first, length = self.number, self.source.batches
        if (batch := self._next()) is None:
            return None
        if length is None:
            items = [batch]
            while len(items) < self.group and (batch := self._next()) is not None:
                items.append(batch)
            steps: Any = Batches(iter(items), len(items), first, self._is_over())
            return Stretch(steps, 1, place=self.reading.place(), group=len(items))
        count, place = min(self.group, length - first), self.reading.place()
        steps = Batches(self._in_turn(batch, count, place), count, first, first + count >= length)
        return Stretch(steps, 1, place=place, group=count)

    def _in_turn(self, first: Any, count: int, place: dict[str, Any]) -> Iterator[Any]:
        """Reads each batch of a step when the one before is done with, as Lightning does; keeps the place right."""
        yield first
        for _ in range(count - 1):
            if (batch := self._next()) is None:
                raise DataError(
                    f"{self.source.name} says it has {self.source.batches} batches and gave {self.number}: make its "
                    "length true, or leave out accumulate_grad_batches."
                )
            place.update(self.reading.place())
            yield batch

    def _next(self) -> Any:
        if self.number == self.source.limit:
            return None
        try:
            batch = self.reading.batches.next()
        except Exception as error:
            error.add_note(f"{self.source.name} raised this instead of batch {self.number} of epoch {self.epoch}.")
            raise
        if batch is None and self.number == 0:
            raise DataError(
                f"{self.source.name} is empty: it gave no batch in epoch {self.epoch}; pass a loader with at least one "
                "batch (an iterator can be passed over only once)."
            )
        self.number += batch is not None
        return batch

    def _is_over(self) -> bool:
        """Says whether no batch is left; where neither a length nor a limit tells, the next batch is read to know.

        Like Lightning: who reads earlier or later gives data that is drawn from the global generators other numbers.
        """
        if self.source.batches is not None:
            return self.number >= self.source.batches
        if self.source.limit is not None:
            return self.number == self.source.limit
        batch = self.reading.batches.next()
        if batch is not None:
            self.reading.batches.hold(batch)
        return batch is None


def sources(data: Any, name: str, limit: int | float | None) -> dict[str, LoaderSource]:
    """Returns the sources of an evaluation by name: "" for one loader, the number or the name for several."""
    if data is None or limit == 0:
        return {}
    if isinstance(data, list | tuple) and data and all(is_loader(one) for one in data):
        named = {str(number): loader for number, loader in enumerate(data)}
    elif isinstance(data, dict):
        named = {str(key): loader for key, loader in data.items()}
    else:
        return {"": LoaderSource(data, name, limit)}
    if len(named) == 1:
        return {"": LoaderSource(next(iter(named.values())), name, limit)}
    return {key: LoaderSource(loader, f"{name}[{key}]", limit) for key, loader in named.items()}


def is_loader(data: Any) -> bool:
    """Says whether an element of a list is a loader, and not a batch."""
    return (
        isinstance(data, Iterable)
        and not isinstance(data, dict | str | bytes | list | tuple | Sequence)
        and (not hasattr(data, "__array__"))
    )


class Cycled:
    """Several loaders side by side: a batch has one of each, shorter ones begin again until the longest is over.

    Args:
      loaders: a dict, list or tuple of loaders with lengths; batches have the same structure.
    """

    def __init__(self, loaders: Any) -> None:
        self._keys = list(loaders) if isinstance(loaders, dict) else None
        self._loaders = list(loaders.values()) if isinstance(loaders, dict) else list(loaders)
        self._kind = type(loaders)

    def __len__(self) -> int:
        """Returns the batches of the longest loader."""
        lengths = [_length(one) for one in self._loaders]
        if None in lengths:
            raise TypeError("one of the loaders has no length")
        return max(length for length in lengths if length is not None)

    def __iter__(self) -> Any:
        """Passes over all of them."""
        iterators = [iterate(one) for one in self._loaders]
        over = [False] * len(iterators)
        while True:
            batch = []
            for i in range(len(iterators)):
                try:
                    item = next(iterators[i])
                except StopIteration:
                    over[i] = True
                    if all(over):
                        return
                    iterators[i] = iterate(self._loaders[i])
                    item = next(iterators[i])
                batch.append(item)
            yield dict(zip(self._keys, batch, strict=True)) if self._keys is not None else self._kind(batch)


def train_source(
    data: Any, limit: int | float | None, overfit: int | float, accumulation: Accumulation
) -> LoaderSource:
    """Returns the source of the training data; several loaders are read side by side.

    Raises:
      ConfigurationError: there is no training data.
      DataError: it is no loader, or an empty one.
    """
    if data is None:
        raise ConfigurationError(
            "fit got no training data; pass train_data or datamodule, or give the module a train_dataloader()."
        )
    several = data.values() if isinstance(data, dict) else data if isinstance(data, list | tuple) else ()
    if several and all(is_loader(one) for one in several):
        data = Cycled(data)
    if overfit:
        length = _length(data)
        count = overfit if isinstance(overfit, int) else max(1, int((length or 1) * overfit))
        data, limit = in_order(data), count
        if not isinstance(data, DataLoader):
            data = list(itertools.islice(iter(data), count))
    found = LoaderSource(data, "train_data", limit, accumulation)
    if found.batches == 0:
        raise DataError("train_data is empty: it gives no batch; pass a loader with at least one batch.")
    return found


def in_order(loader: Any) -> Any:
    """Returns a DataLoader that shuffles, or several, as ones that do not: overfitting needs the same batches again."""
    if isinstance(loader, list | tuple) and loader and all(is_loader(one) for one in loader):
        return [in_order(one) for one in loader]
    if isinstance(loader, dict):
        return {name: in_order(one) for name, one in loader.items()}
    if not isinstance(loader, DataLoader) or not isinstance(loader.sampler, RandomSampler):
        return loader
    return with_sampler(loader, SequentialSampler(loader.dataset))  # pyright: ignore[reportArgumentType]


def _length(data: Any) -> int | None:
    """Returns the batches of a loader; None where it does not say, as over a streaming data set."""
    if not isinstance(data, Sized):
        return None
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None
