"""Feed: an epoch as placed stretches, cut where somebody looks, made ahead in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lightjax.data.stretch import Cursor, Stretch


def stretches(
    cursor: Cursor, place: Callable[..., Stretch], length: Callable[[int], int], capacity: int
) -> Iterator[Stretch]:
    """Cuts what is left of an epoch into stretches and places them on the device.

    Args:
      cursor: where the epoch is.
      place: `(stretch, taken) -> stretch`, on the device.
      length: how many steps the stretch may have that begins after `taken` steps; 0 ends the iteration.
      capacity: room of the program that runs them.
    """
    taken = 0
    while (most := length(taken)) and (stretch := cursor.take(most, capacity)) is not None:
        yield place(stretch, taken)
        taken += stretch.count
