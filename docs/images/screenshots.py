"""Makes the pictures of docs/: the bar in a pseudo-terminal, and the page of several runs in a browser.

python docs/images/screenshots.py [bar] [report]

Needs a Chromium on the PATH (apt-get install chromium) and, for a bar at full speed, a machine with nothing else to do.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).parent
COLUMNS = 100
# Runs until it is read from no more: whoever takes the picture chooses when.
PROGRAM = """
import sys
import numpy as np, optax, jax
import jax.numpy as jnp
import lightjax as lj

def data(examples, seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 10, examples)
    image = rng.normal(size=(examples, 64)) + 0.45 * np.random.default_rng(0).normal(size=(10, 64))[label]
    return lj.ArrayLoader({"image": image.astype(np.float32), "label": label}, batch_size=32, shuffle=True)

def init(key, batch):
    keys = jax.random.split(key)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (64, 128)) / 8, "bias": jnp.zeros((1, 128))},
        "head": {"kernel": jax.random.normal(keys[1], (128, 10)) / 11, "bias": jnp.zeros((1, 10))},
    }
    return lj.TrainState.create(params=params, optimizer=optax.sgd(RATE), key=key)

def loss_fn(state, batch):
    hidden = jnp.tanh(batch["image"] @ state.params["hidden"]["kernel"] + state.params["hidden"]["bias"])
    logits = hidden @ state.params["head"]["kernel"] + state.params["head"]["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"loss": lj.Mean(losses), "accuracy": lj.Accuracy(logits, batch["label"])}

task = lj.Task.from_loss(init, loss_fn)
"""
RUN = "lj.Trainer(max_epochs=8, log_every_n_steps=20, **ARGUMENTS).fit(task, data(4000, 1), data(1000, 2))\n"


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No Chromium is on the PATH: on Debian and Ubuntu, 'apt-get install chromium' brings it.")
    pictures = {"bar": take_bar, "report": take_report}
    for name in sys.argv[1:] or pictures:
        with tempfile.TemporaryDirectory() as folder:
            pictures[name](chromium, Path(folder))


def take_bar(chromium: str, folder: Path) -> None:
    page = folder / "bar.html"
    endless = RUN.replace("max_epochs=8", "max_epochs=4000").replace("**ARGUMENTS", "")
    lines = shown_in_terminal(PROGRAM.replace("RATE", "0.05") + endless, folder)
    page.write_text(as_page(lines))
    take(chromium, page, IMAGES / "bar.png", 940, 22 * len(lines) + 40)


def take_report(chromium: str, folder: Path) -> None:
    for rate in ("0.3", "0.03", "0.003"):
        arguments = "{'enable_progress_bar': False, 'enable_model_summary': False}"
        program = PROGRAM.replace("RATE", rate) + RUN.replace("ARGUMENTS", arguments)
        subprocess.run([sys.executable, "-c", program], check=True, cwd=folder, stdout=subprocess.DEVNULL)
    runs = [str(folder / f"lightjax_logs/version_{number}") for number in range(3)]
    page = folder / "report.html"
    subprocess.run([sys.executable, "-m", "lightjax.cli", "report", *runs, "-o", str(page)], check=True)
    take(chromium, page, IMAGES / "report.png", 1360, 680)


def shown_in_terminal(program: str, folder: Path, until: str = "Epoch 20/") -> list[str]:
    """Runs a program in a pseudo-terminal; returns the lines on it a second after a text is."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": str(COLUMNS)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=folder
    )
    os.close(slave)
    output, until_s = "", None
    while until_s is None or time.monotonic() < until_s:
        output += os.read(master, 1 << 16).decode(errors="replace")
        if until_s is None and until in output:
            until_s = time.monotonic() + 1.0
    process.kill()
    process.wait()
    os.close(master)
    # A bar is drawn by erasing its lines and writing them anew: stop where it was written last.
    return screen(output[: output.rindex("\r\x1b[2K")])


def screen(output: str) -> list[str]:
    """Returns what a terminal shows, with its colours: only what the bar's own library writes is understood."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", token):
            row -= int(token[2:-1] or 1)
        elif token.endswith("m") or not token.startswith(("\x1b", "\r")):
            lines[row] += token
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def as_page(lines: list[str]) -> str:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in lines:
        console.print(Text.from_ansi(line), soft_wrap=True)
    body = console.export_html(inline_styles=True, code_format="{code}")
    return (
        '<!doctype html><meta charset="utf-8"><body style="margin:0;background:#10151f;color:#e2e8f0">'
        f'<pre style="margin:18px;font:15px/22px DejaVu Sans Mono,monospace">{body}</pre></body>'
    )


def take(chromium: str, page: Path, image: Path, width: int, height: int) -> None:
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--lang=en"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    subprocess.run(
        [*command, profile, f"--window-size={width},{height}", f"--screenshot={image}", page.as_uri()],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    # A few colours are enough for lines and letters, and a fifth of the size.
    Image.open(image).convert("RGB").quantize(32).save(image, optimize=True)
    print(image, image.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
