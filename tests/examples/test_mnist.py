"""examples/mnist.py reads IDX files or names the one that it cannot read, and trains on them."""

import gzip
import hashlib
import importlib.util
import io
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "mnist.py"
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


@pytest.fixture(scope="module")
def mnist():
    spec = importlib.util.spec_from_file_location("mnist_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def made_digits(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright row whose place is the label: learnt in an epoch."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, size, dtype=np.uint8)
    images = generator.integers(0, 60, (size, 12, 12), dtype=np.uint8)
    images[np.arange(size), labels + 1] = 255
    return images, labels


def write_files(directory: Path, *, zipped: bool, train_size: int = 36, test_size: int = 8) -> Path:
    directory.mkdir(exist_ok=True)
    for names, size in zip(FILES.values(), (train_size, test_size), strict=True):
        for name, array in zip(names, made_digits(size), strict=True):
            if zipped:
                (directory / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (directory / name).write_bytes(idx(array))
    return directory


@pytest.mark.parametrize("zipped", [True, False], ids=["gz", "raw"])
def test_a_split_reads_back_as_it_was_written(mnist, tmp_path, zipped):
    arrays = mnist.read_split(write_files(tmp_path, zipped=zipped), "train")
    images, labels = made_digits(36)
    assert (arrays["image"].dtype, arrays["label"].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(arrays["image"], images[..., None])
    np.testing.assert_array_equal(arrays["label"], labels)


def test_values_lie_last_dimension_fastest_behind_big_endian_lengths(mnist, tmp_path):
    (tmp_path / "images").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert mnist.read_idx(tmp_path / "images", dimensions=3).tolist() == [[[1, 2, 3]], [[4, 5, 6]]]


IMAGES = idx(made_digits(4)[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends within its header, after 0 bytes"),
        (
            b"<html>not here</html>",
            "starts with bytes 3c 68 74 6d and an IDX file of 3-dimensional unsigned bytes with 00 00 08 03",
        ),
        (idx(made_digits(4)[1]), "starts with bytes 00 00 08 01 and an IDX file of 3-dimensional"),
        (b"\0\0\x0d\x03" + IMAGES[4:], "starts with bytes 00 00 0d 03"),
        (IMAGES[:10], "ends within its header, after 10 bytes"),
        (IMAGES[:-1], r"announces shape \(4, 12, 12\), which is 576 bytes, and holds 575"),
        (IMAGES + b"\0", "which is 576 bytes, and holds 577"),
        (gzip.compress(IMAGES)[:-9], "could not be read .Compressed file ended"),
        (gzip.compress(IMAGES)[:12] + b"\xff" * 40, "could not be read"),
        (b"\x1f\x8b\0\0not gzip at all", "could not be read"),
    ],
    ids=[
        "empty",
        "page",
        "labels",
        "floats",
        "header",
        "truncated",
        "surplus",
        "truncated-gz",
        "damaged-gz",
        "no-gz",
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(mnist, tmp_path, capsys, content, words):
    path = write_files(tmp_path, zipped=False) / FILES["train"][0]
    path.write_bytes(content)
    assert mnist.main(["--data", str(tmp_path)]) == 1
    with pytest.raises(mnist.MnistError, match=f"^{path} .*{words}"):
        mnist.read_idx(path, dimensions=3)
    output = capsys.readouterr()
    assert output.err.startswith(str(path))
    assert output.err.count("\n") == 1


def test_images_and_labels_of_different_counts_name_both_files(mnist, tmp_path):
    write_files(tmp_path, zipped=False)
    (tmp_path / FILES["train"][1]).write_bytes(idx(made_digits(35)[1]))
    with pytest.raises(mnist.MnistError, match="train-images.* holds 36 images and .*train-labels.* 35 labels"):
        mnist.read_split(tmp_path, "train")


def test_labels_that_are_no_digits_name_the_file(mnist, tmp_path):
    write_files(tmp_path, zipped=False)
    (tmp_path / FILES["train"][1]).write_bytes(idx(np.full(36, 11, np.uint8)))
    with pytest.raises(mnist.MnistError, match="train-labels-idx1-ubyte holds label 11"):
        mnist.read_split(tmp_path, "train")


def test_no_images_at_all_name_the_file(mnist, tmp_path):
    write_files(tmp_path, zipped=False, train_size=0)
    with pytest.raises(mnist.MnistError, match="train-images-idx3-ubyte holds no images"):
        mnist.read_split(tmp_path, "train")


def test_a_missing_file_is_named(mnist, tmp_path, capsys):
    (write_files(tmp_path, zipped=True) / "t10k-labels-idx1-ubyte.gz").unlink()
    assert mnist.main(["--data", str(tmp_path)]) == 1
    assert "t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz exists" in capsys.readouterr().err


def test_offline_it_says_in_one_sentence_what_it_could_not_reach_and_what_to_do(mnist, tmp_path, capsys, monkeypatch):
    def offline(url, timeout):
        raise urllib.error.URLError("No such host")

    monkeypatch.setattr(mnist.urllib.request, "urlopen", offline)
    monkeypatch.setattr(mnist, "CACHE", tmp_path / "cache")
    assert mnist.main([]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        "Could not get train-images-idx3-ubyte.gz from https://ossci-datasets.s3.amazonaws.com/mnist/ "
        "(No such host) or https://storage.googleapis.com/cvdf-datasets/mnist/ (No such host): "
        "put MNIST's four files into a folder and run this again with --data FOLDER.\n"
    )
    assert not (tmp_path / "cache").exists()


def test_a_download_falls_back_to_the_second_mirror_checks_the_content_and_is_kept(mnist, tmp_path, monkeypatch):
    served = write_files(tmp_path / "served", zipped=True)
    sums = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in served.iterdir()}
    asked = []

    def mirror(url, timeout):
        asked.append(url)
        host, name = url.rsplit("/", 1)
        if f"{host}/" == mnist.MIRRORS[0]:
            return io.BytesIO(b"a login page")
        return io.BytesIO((served / name).read_bytes())

    monkeypatch.setattr(mnist.urllib.request, "urlopen", mirror)
    monkeypatch.setattr(mnist, "SHA256", {name: sums[name] for name in mnist.SHA256})
    mnist.download(tmp_path / "cache")
    assert len(asked) == 8
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(f"{n}.gz" for n in sums)
    mnist.download(tmp_path / "cache")
    assert len(asked) == 8, "files that are there were fetched again"


def test_content_with_another_checksum_is_refused_and_not_kept(mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(mnist.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b"a login page"))
    with pytest.raises(mnist.MnistError, match=r"ossci.* \(what came has another checksum\) or .*cvdf.* --data"):
        mnist.download(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_help_lists_every_option(mnist, capsys):
    with pytest.raises(SystemExit) as exit_:
        mnist.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--data", "--max-epochs", "--batch-size", "--learning-rate"))


def test_it_trains_tests_the_best_checkpoint_and_prints_the_accuracy(mnist, tmp_path, capsys):
    data = write_files(tmp_path / "data", zipped=True, train_size=600, test_size=70)
    arguments = ["--data", str(data), "--max-epochs", "4", "--batch-size", "32", "--learning-rate", "0.003"]
    assert mnist.main(arguments) == 0
    accuracy = float(capsys.readouterr().out.split("test accuracy ")[1].split()[0])
    assert accuracy > 0.9
