"""Positions of loaders as JSON: what a checkpoint can keep of `state_dict()` and `get_state()`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import numpy as np

from lightjax.errors import CheckpointError


def encode(value: Any, path: str = "") -> Any:
    """Makes JSON of what a loader says of its position; nothing of it is shared with the loader.

    Args:
      value: numbers, strings, bytes, None, arrays and torch tensors, in dicts, lists and tuples.
      path: where the value is, for the message.

    Raises:
      CheckpointError: something else is in it; a checkpoint holds arrays and JSON, never pickles.

    Example:
      >>> encode({"next": 3, "key": (b"ab", None)})
      {'next': 3, 'key': {'$tuple': [{'$bytes': 'YWI='}, None]}}
      >>> decode(encode({1: (b"ab", None)}))
      {1: (b'ab', None)}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        items = [(key, encode(item, f"{path}/{key}")) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
            return dict(items)
        return {"$dict": [[encode(key, path), item] for key, item in items]}
    if isinstance(value, list | tuple):
        items = [encode(item, f"{path}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": base64.b64encode(value).decode()}
    is_tensor = type(value).__module__.partition(".")[0] == "torch"
    array = np.asarray(value) if is_tensor or isinstance(value, np.ndarray | np.generic) else None
    if array is None or array.dtype.hasobject:
        raise CheckpointError(
            f"The position of the training data holds {type(value).__name__} at {path or 'its root'!r}, which a "
            "checkpoint cannot keep: it holds arrays and JSON, never pickles. Let the loader's state_dict() return "
            "numbers, strings, bytes and arrays."
        )
    described = {"dtype": array.dtype.str, "shape": list(array.shape), "of": "torch" if is_tensor else "numpy"}
    return {"$array": base64.b64encode(array.tobytes()).decode(), **described}


def decode(value: Any) -> Any:
    """Takes back what `encode` made."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$bytes" in value:
        return base64.b64decode(value["$bytes"])
    if "$tuple" in value:
        return tuple(decode(item) for item in value["$tuple"])
    if "$dict" in value:
        return {decode(key): decode(item) for key, item in value["$dict"]}
    if "$array" in value:
        content = np.frombuffer(base64.b64decode(value["$array"]), value["dtype"])
        array = content.reshape(value["shape"]).copy()
        # Whoever gave a tensor has imported torch already.
        return sys.modules["torch"].from_numpy(array) if value["of"] == "torch" else array
    return {key: decode(item) for key, item in value.items()}
