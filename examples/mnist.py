"""Trains a small convolutional network on MNIST.

python examples/mnist.py                      # downloads 12 MB the first time
python examples/mnist.py --data DIR           # reads the four IDX files in DIR, gzipped or not
"""

import argparse
import gzip
import hashlib
import http.client
import math
import os
import struct
import sys
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import lightjax as lj

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
SHA256 = {  # of the gzipped files
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightjax" / "mnist"
TIMEOUT_S = 30
UNSIGNED_BYTE = 0x08  # the third byte of an IDX file names the type of its values; MNIST has only this one

Arrays = dict[str, np.ndarray]


class MnistError(Exception):
    """The data could not be had; the message is one sentence for the person at the terminal."""


# --- reading ---------------------------------------------------------------------------------------------


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    The format: two zero bytes, the type of the values, the number of dimensions, the length of each dimension
    as a big-endian 32-bit integer, then the values, last dimension fastest.

    Args:
      path: the file; gzipped if it starts as gzip does, whatever its name.
      dimensions: how many dimensions it must have (3 for images, 1 for labels).

    Returns:
      A uint8 array with the file's shape.

    Raises:
      MnistError: the file is missing, damaged or something else; the message names it.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise MnistError(f"{path} could not be read ({error}): fetch it again.") from error
    magic = bytes([0, 0, UNSIGNED_BYTE, dimensions])
    if content[:4] != magic[: len(content)]:
        raise MnistError(
            f"{path} starts with bytes {content[:4].hex(' ')} and an IDX file of {dimensions}-dimensional "
            f"unsigned bytes with {magic.hex(' ')}: it is another file, or a damaged one."
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise MnistError(f"{path} ends within its header, after {len(content)} bytes: fetch it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, found = math.prod(shape), len(content) - start
    if found != expected:
        raise MnistError(
            f"{path} announces shape {shape}, which is {expected} bytes, and holds {found}: fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_split(directory: Path, split: str) -> Arrays:
    """Reads the images and labels of one split, "train" or "t10k".

    Returns:
      `image`, uint8[N, height, width, 1], and `label`, int32[N].
    """
    image_file = find(directory, f"{split}-images-idx3-ubyte")
    label_file = find(directory, f"{split}-labels-idx1-ubyte")
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
    if len(images) != len(labels):
        raise MnistError(
            f"{image_file} holds {len(images)} images and {label_file} {len(labels)} labels: "
            "they do not belong together."
        )
    if len(images) == 0:
        raise MnistError(f"{image_file} holds no images.")
    if labels.max() > 9:
        raise MnistError(f"{label_file} holds label {labels.max()}: digits go from 0 to 9.")
    return {"image": images[..., None], "label": labels.astype(np.int32)}


def find(directory: Path, name: str) -> Path:
    """Returns the file `name` of a directory, as it is or gzipped."""
    candidates = [directory / name, directory / f"{name}.gz"]
    for path in candidates:
        if path.is_file():
            return path
    raise MnistError(f"Neither {candidates[0]} nor {candidates[1].name} exists: four files are needed.")


# --- downloading -----------------------------------------------------------------------------------------


def download(directory: Path) -> None:
    """Fetches the files that `directory` does not hold yet; each appears whole and checked, or not at all."""
    for name, sha256 in SHA256.items():
        path = directory / f"{name}.gz"
        if path.is_file():
            continue
        content = fetch(path.name, sha256)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            raise MnistError(f"Could not keep {path} ({error}): make room or set XDG_CACHE_HOME.") from error


def fetch(name: str, sha256: str) -> bytes:
    """Returns the content of one file from the first mirror that has it with the right checksum."""
    reasons = []
    for mirror in MIRRORS:
        try:
            with urllib.request.urlopen(mirror + name, timeout=TIMEOUT_S) as response:
                content = response.read()
        except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
            reasons.append(f"{mirror} ({getattr(error, 'reason', error)})")
            continue
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        reasons.append(f"{mirror} (what came has another checksum)")
    raise MnistError(
        f"Could not get {name} from {' or '.join(reasons)}: put MNIST's four files into a folder and run "
        "this again with --data FOLDER."
    )


# --- the model and its loss ------------------------------------------------------------------------------


class ConvNet(nn.Module):
    """Two convolutions and two dense layers: uint8[N, height, width, 1] to float32[N, 10] logits."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = image.astype(jnp.float32) / 255
        for features in (16, 32):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def make_task(learning_rate: float) -> Any:
    """Returns the task of classifying digits with `ConvNet` and Adam."""
    model = ConvNet()

    def init(key, batch):
        params = model.init(key, batch["image"])["params"]
        return lj.TrainState.create(params=params, optimizer=optax.adam(learning_rate), key=key)

    def loss_fn(state, batch):
        logits = model.apply({"params": state.params}, batch["image"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        accuracy = lj.Mean(logits.argmax(-1) == batch["label"])
        return losses.mean(), {"loss": lj.Mean(losses), "accuracy": accuracy}

    return lj.Task.from_loss(init, loss_fn)


# --- the program -----------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, tests the best checkpoint and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the four IDX files, .gz or not")
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args(argv)

    try:
        if arguments.data is None:
            download(CACHE)
        directory = arguments.data or CACHE
        full, test = read_split(directory, "train"), read_split(directory, "t10k")
    except MnistError as error:
        print(error, file=sys.stderr)
        return 1

    # The last twelfth, 5 000 of the 60 000 images, chooses the checkpoint and when to stop.
    train_size = len(full["label"]) - math.ceil(len(full["label"]) / 12)
    train = {name: array[:train_size] for name, array in full.items()}
    val = {name: array[train_size:] for name, array in full.items()}

    trainer = lj.Trainer(
        max_epochs=arguments.max_epochs,
        callbacks=[lj.EarlyStopping("val/loss", patience=3), lj.ModelCheckpoint("val/accuracy", mode="max")],
    )
    task = make_task(arguments.learning_rate)
    result = trainer.fit(
        task,
        lj.ArrayLoader(train, arguments.batch_size, shuffle=True, seed=0),
        lj.ArrayLoader(val, arguments.batch_size),
    )
    best = result.checkpoint.best.restore()
    metrics = trainer.test(task, lj.ArrayLoader(test, arguments.batch_size), state=best)
    print(f"stopped by {result.stopped_by}; test accuracy {metrics['test/accuracy']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
