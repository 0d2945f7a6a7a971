"""Checkpoints at `gs://`: another machine goes on from them, and what is not whole is told there, too."""

import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from fsspec import AbstractFileSystem

import lightjax as lj
from lightjax.checkpoint import checkpointer as checkpointing
from lightjax.checkpoint.location import located
from lightjax.cli import main
from tests.models import bits, digit_like_data, mlp_task, quiet

OBJECTS: dict[str, tuple[int, bytes]] = {}
LOCK = threading.Lock()


class Requests(BaseHTTPRequestHandler):
    """As much of the interface of Google's object store as arrays are read and written with."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body=b"", generation=0):
        self.send_response(code)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        self.wfile.write(body)

    def asked(self):
        url = urllib.parse.urlsplit(self.path)
        return url.path, {name: values[0] for name, values in urllib.parse.parse_qs(url.query).items()}

    def do_GET(self):
        path, query = self.asked()
        _, _, name = path.partition("/o/")
        with LOCK:
            if not name:
                found = {key: one for key, one in OBJECTS.items() if key.startswith(query.get("prefix", ""))}
                items = [
                    {"name": key, "generation": str(one[0]), "size": str(len(one[1]))}
                    for key, one in sorted(found.items())
                ]
                return self.answer(200, json.dumps({"items": items}).encode())
            generation, content = OBJECTS.get(urllib.parse.unquote(name), (0, None))
        if content is None:
            return self.answer(404)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304, generation=generation)
        if not (span := self.headers.get("range")):
            return self.answer(200, content, generation)
        first, _, last = span.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("content-range", f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}")
        self.send_header("content-length", str(len(part)))
        self.send_header("x-goog-generation", str(generation))
        self.end_headers()
        return self.wfile.write(part)

    def do_POST(self):
        _, query = self.asked()
        content = self.rfile.read(int(self.headers["content-length"]))
        with LOCK:
            generation, _ = OBJECTS.get(query["name"], (0, b""))
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                return self.answer(412)
            OBJECTS[query["name"]] = (generation + 1, content)
        return self.answer(200, json.dumps({"generation": str(generation + 1), "name": query["name"]}).encode())

    def do_DELETE(self):
        with LOCK:
            gone = OBJECTS.pop(urllib.parse.unquote(self.asked()[0].partition("/o/")[2]), None)
        self.answer(404 if gone is None else 204)


class Files(AbstractFileSystem):
    """The same objects as files, as the package gcsfs shows them."""

    protocol = ("gs",)
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return str(path).removeprefix("gs://").strip("/")

    @classmethod
    def key(cls, path):
        return cls._strip_protocol(path).removeprefix("bucket").strip("/")

    def ls(self, path, detail=True, **_):
        path = self.key(path)
        with LOCK:
            if path in OBJECTS:
                found = {path: len(OBJECTS[path][1])}
            else:
                above = f"{path}/" if path else ""
                below = {key: one for key, one in OBJECTS.items() if key.startswith(above)}
                found = {
                    above + key.removeprefix(above).split("/")[0]: len(one[1])
                    if "/" not in key.removeprefix(above)
                    else None
                    for key, one in below.items()
                }
        if not found:
            raise FileNotFoundError(path)
        rows = [
            {"name": f"bucket/{key}", "size": size or 0, "type": "directory" if size is None else "file", "mtime": 0.0}
            for key, size in found.items()
        ]
        return rows if detail else [row["name"] for row in rows]

    def info(self, path, **_):
        key = self.key(path)
        found = self.ls(path)
        if len(found) == 1 and found[0]["name"] == f"bucket/{key}":
            return found[0]
        return {"name": f"bucket/{key}", "size": 0, "type": "directory", "mtime": 0.0}

    def isdir(self, path):
        return self.exists(path) and self.info(path)["type"] == "directory"

    def exists(self, path, **_):
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def makedirs(self, path, exist_ok=False):
        pass

    def mkdir(self, path, create_parents=True, **_):
        pass

    def cat_file(self, path, start=None, end=None, **_):
        try:
            return OBJECTS[self.key(path)][1][start:end]
        except KeyError:
            raise FileNotFoundError(path) from None

    def open(self, path, mode="rb", **_):
        import io

        key = self.key(path)
        if "r" in mode:
            content = io.BytesIO(self.cat_file(path))
            return content if "b" in mode else io.TextIOWrapper(content)

        class Written(io.BytesIO):
            def close(self):
                if not self.closed:
                    with LOCK:
                        OBJECTS[key] = (OBJECTS.get(key, (0, b""))[0] + 1, self.getvalue())
                super().close()

        return Written() if "b" in mode else io.TextIOWrapper(Written())

    def rm(self, path, recursive=False, maxdepth=None):
        key = self.key(path)
        with LOCK:
            for name in [name for name in OBJECTS if name == key or name.startswith(f"{key}/")]:
                del OBJECTS[name]


@pytest.fixture
def store(monkeypatch):
    """A bucket that lives in this process."""
    OBJECTS.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Requests)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
    fsspec.register_implementation("gcs", Files, clobber=True)
    monkeypatch.setattr(checkpointing, "WRITE_EVERY_S", 0.0)
    yield OBJECTS
    server.shutdown()
    server.server_close()


def fit(root, place, *, max_steps=10, resume=None):
    keeper = lj.ModelCheckpoint("val/loss", dirpath=place, save_top_k=-1)
    trainer = quiet(
        max_steps=max_steps, enable_checkpointing=True, default_root_dir=root, callbacks=keeper, resume=resume
    )
    loader = lj.ArrayLoader(digit_like_data(70), 16, shuffle=True, seed=1)
    return trainer, trainer.fit(mlp_task(), loader, lj.ArrayLoader(digit_like_data(37, seed=2), 8))


def test_another_machine_takes_over_bit_for_bit(store, tmp_path, capsys):
    place = "gs://bucket/runs/one"
    _, whole = fit(tmp_path / "whole", None)
    fit(tmp_path / "first", place, max_steps=7)
    trainer, result = fit(tmp_path / "second", place, resume="auto")
    assert bits(result.state) == bits(whole.state)
    # What the first machine reported is known; the one that ended at step 7 looked there, too.
    assert [row["step"] for row in result.history] == [5, 7, 10]
    assert result.history[0] == whole.history[0]
    for name in ("train/loss_epoch", "train/accuracy_epoch", "val/loss", "val/accuracy"):
        assert result.history[-1][name] == whole.history[-1][name]
    assert str(result.checkpoint.last.path) == f"{place}/step_10"
    assert bits(result.checkpoint.best.restore()) == bits(whole.checkpoint.best.restore())
    assert trainer.validate(mlp_task(), lj.ArrayLoader(digit_like_data(37, seed=2), 8), state="last")
    params, _ = lj.load_params(place, whole.state.params)
    assert bits(params) == bits(whole.state.params)
    # A directory of the run is known here now: the same run goes on from it.
    assert fit(tmp_path / "second", place, max_steps=12, resume="auto")[1].directory == result.directory
    # What is not whole is passed over there, too.
    last = located(f"{place}/step_12")
    name = next(name for name in store if name.startswith("runs/one/step_12/state/") and len(store[name][1]) > 100)
    store[name] = (store[name][0], store[name][1][:50])
    assert "has 50 bytes instead of" in lj.Checkpoint.open(last).damage()
    with pytest.warns(UserWarning, match="step_12 is passed over"):
        _, again = fit(tmp_path / "third", place, max_steps=10, resume=place)
    assert bits(again.state) == bits(whole.state)
    capsys.readouterr()
    assert main(["checkpoint", "ls", place]) == 0
    assert "damaged" in capsys.readouterr().out
    # Another run begins beside them, not among them.
    assert str(fit(tmp_path / "fourth", place, max_steps=2)[1].checkpoint.last.path) == f"{place}/version_0/step_2"


def test_what_an_object_store_cannot_do_is_refused():
    with pytest.raises(lj.ConfigurationError, match="'s3://bucket/run'.*mount the bucket"):
        lj.ModelCheckpoint(dirpath="s3://bucket/run")
    with pytest.raises(lj.ConfigurationError, match="makes links, which an object store does not have"):
        lj.ModelCheckpoint(dirpath="gs://bucket/run", filename="{step}")
