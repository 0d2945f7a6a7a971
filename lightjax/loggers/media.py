"""Media: images, figures, histograms and tables as the clients of loggers want them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from lightjax.errors import MetricError


def as_image(name: str, image: Any) -> np.ndarray:
    """Returns an image as uint8 [height, width, channels], with 1, 3 or 4 channels.

    Args:
      name: what it is called, for messages.
      image: uint8, or floats from 0 to 1 (NaN becomes 0); [height, width] or [height, width, channels].

    Raises:
      MetricError: the rank, the channels, the dtype or the range is another.

    Example:
      >>> as_image("sample", np.full((2, 2), 0.5)).tolist()
      [[[128], [128]], [[128], [128]]]
    """
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or not array.size:
        turned = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = "transpose it, image.transpose(1, 2, 0)" if turned else "log one image at a time"
        raise MetricError(
            f"The image {name!r} has the shape {np.shape(image)}; an image is [height, width] or [height, width, "
            f"channels] with 1, 3 or 4 channels: {hint}."
        )
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind not in "fV":
        raise MetricError(f"The image {name!r} has the dtype {array.dtype}; give uint8, or floats from 0 to 1.")
    values = np.nan_to_num(array.astype(np.float32), nan=0.0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise MetricError(
            f"The image {name!r} has floats from {low:.4g} to {high:.4g}; they have to lie between 0 and 1: scale "
            "them, (image - image.min()) / (image.max() - image.min()), or give uint8."
        )
    return np.rint(values * 255).astype(np.uint8)


def figure_image(figure: Any) -> np.ndarray:
    """Draws a matplotlib figure as an image, uint8 [height, width, 4]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def png(image: np.ndarray) -> bytes:
    """Writes an image as a PNG file.

    Raises:
      ModuleNotFoundError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Images are written through pillow, which is not installed here. Run `pip install pillow`.", name="PIL"
        ) from error
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def as_values(name: str, values: Any) -> np.ndarray:
    """Returns what a histogram is made of: float64 [n], without NaN and infinities.

    Raises:
      MetricError: nothing is left, or what there is are no numbers.
    """
    try:
        array = np.asarray(values).astype(np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise MetricError(f"The histogram {name!r} is not made of numbers: {error}.") from error
    finite = array[np.isfinite(array)]
    if not finite.size:
        raise MetricError(f"The histogram {name!r} has no finite value among {array.size}; check what it is made of.")
    return finite


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    r"""Writes a table as Markdown.

    Example:
      >>> print(markdown(["a", "b"], [[1, "x|y"]]))
      | a | b |
      | --- | --- |
      | 1 | x\|y |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text.replace("|", "\\|").replace("\n", "<br>")
