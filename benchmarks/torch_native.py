"""Microseconds of a torch train step: a hand-written loop, Lightning, and lightjax, eager and compiled.

All run in one process, in turns, with the defaults of their trainers (loggers, checkpoints, a progress bar) on the same
batches; timed from the start of an epoch to the start of the next, with whatever the trainer does in between, such as
saving, the first epoch left out. Logged scalars are the loss, by several names.

With `--in-turns`, single steps of the hand-written loop and of lightjax alternate in one training, by the time of their
thread alone: on a busy machine it shows what lightjax adds where whole epochs only show the others.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import itertools
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from report import machine, machine_line, table, write_json
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

EPOCHS = 4  # and one more in trainers, whose start ends the last


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def boring() -> nn.Module:
    return nn.Linear(32, 2)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 14 * 14, 10),
    )  # fmt: skip


def gpt() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(256, 64),
        Attention(64, 4),
        Attention(64, 4),
        nn.LayerNorm(64),
        nn.Linear(64, 256),
        nn.Flatten(0, 1),
    )


# Model, inputs and labels of a batch, steps of an epoch.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], int]] = {
    "boring": (boring, lambda: (torch.randn(4, 32), torch.randint(0, 2, (4,))), 300),
    "mlp": (mlp, lambda: (torch.randn(128, 64), torch.randint(0, 10, (128,))), 150),
    "cnn": (cnn, lambda: (torch.randn(32, 1, 28, 28), torch.randint(0, 10, (32,))), 120),
    "gpt": (gpt, lambda: (torch.randint(0, 256, (8, 64)), torch.randint(0, 256, (512,))), 90),
}


def module_class(base: type) -> type:
    """Makes the module, of Lightning's class or ours."""

    class Module(base):
        def __init__(self, make: Callable[[], nn.Module], logs: int) -> None:
            super().__init__()
            self.net, self.names = make(), [f"loss{i}" for i in range(logs)]
            self.begun, self.times = None, []

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            for name in self.names:
                self.log(name, loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def on_train_epoch_start(self) -> None:
            now = time.perf_counter()
            if self.begun is not None:
                self.times.append(now - self.begun)
            self.begun = now

    return Module


def raw(make: Callable[[], nn.Module], data: DataLoader, logs: int) -> list[float]:
    """The loop as one writes it by hand; logged values are kept."""
    net, times = make(), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        begun, kept = time.perf_counter(), []
        for inputs, labels in data:
            loss = functional.cross_entropy(net(inputs), labels)
            kept += [loss.detach()] * logs
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times.append(time.perf_counter() - begun)
    return times


def lightjax(backend: str) -> Callable[..., list[float]]:
    import lightjax_torch

    def run(make: Callable[[], nn.Module], data: DataLoader, logs: int) -> list[float]:
        module = module_class(lightjax_torch.LightningModule)(make, logs)
        lightjax_torch.Trainer(max_epochs=EPOCHS + 1, backend=backend, accelerator="cpu").fit(module, data)
        return module.times

    return run


def lightning(make: Callable[[], nn.Module], data: DataLoader, logs: int) -> list[float]:
    import lightning.pytorch as pl

    module = module_class(pl.LightningModule)(make, logs)
    pl.Trainer(max_epochs=EPOCHS + 1, accelerator="cpu").fit(module, data)
    return module.times


class InTurns:
    """A loader that runs a step of a hand-written loop before each batch it gives, and times both.

    Args:
      make: makes the module.
      items: the batches.

    Attributes:
      by_hand_ns: time of each step of the hand-written loop.
      between_ns: time between a batch and the next one: a step of whoever reads this.
    """

    def __init__(self, make: Callable[[], nn.Module], items: list[Any]) -> None:
        self.items = items
        self.net = make()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3)
        self.by_hand_ns: list[int] = []
        self.between_ns: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        given_ns = None
        for inputs, labels in self.items:
            begun_ns = time.thread_time_ns()
            if given_ns is not None:
                self.between_ns.append(begun_ns - given_ns)
            loss = functional.cross_entropy(self.net(inputs), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            given_ns = time.thread_time_ns()
            self.by_hand_ns.append(given_ns - begun_ns)
            yield inputs, labels


def in_turns(names: list[str], logged: list[int], rounds: int) -> tuple[list[Any], list[list[str]]]:
    """Times single steps in turns; returns what was found and the rows of a table."""
    found, rows = [], []
    for name, logs in itertools.product(names, logged):
        make, batch, steps = MODELS[name]
        data = InTurns(make, [batch() for _ in range(steps)])
        for _ in range(rounds):
            gc.collect()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                lightjax("eager")(make, data, logs)
        step_us = {}
        for quantile, place in (("lowest tenth", 10), ("median", 2)):
            by_hand, other = (sorted(one)[len(one) // place] / 1e3 for one in (data.by_hand_ns, data.between_ns))
            step_us[quantile] = {"raw loop": by_hand, "lightjax": other}
        cells = [f"{one['raw loop']:.0f} + {one['lightjax'] - one['raw loop']:.0f}" for one in step_us.values()]
        ratios = [f"{one['lightjax'] / one['raw loop']:.2f}" for one in step_us.values()]
        found.append({"model": name, "logs": logs, "step_us": step_us})
        rows.append([name, str(logs), cells[0], ratios[0], cells[1], ratios[1]])
    return found, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--logs", nargs="*", type=int, default=[0, 1, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inductor", action="store_true", help="with torch.compile as well (minutes of compilation)")
    parser.add_argument("--in-turns", action="store_true", help="single steps of the raw loop and of lightjax in turns")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    contestants = {"raw loop": raw, "Lightning": lightning, "lightjax": lightjax("eager")}
    if arguments.inductor:
        contestants["lightjax, inductor"] = lightjax("inductor")
    about = machine() | {"threads": torch.get_num_threads(), "epochs": EPOCHS, "rounds": arguments.rounds}
    found, rows = [], []
    if arguments.in_turns:
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            found, rows = in_turns(arguments.models, arguments.logs, arguments.rounds)
        print(
            f"Microseconds of a step by hand + what lightjax adds, {about['threads']} threads; {machine_line(about)}\n"
        )
        print(table(["model", "logged", "lowest tenth", "ratio", "median", "ratio"], rows))
        if arguments.json:
            write_json(arguments.json, about | {"in_turns": found})
        return
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        for name in arguments.models:
            make, batch, steps = MODELS[name]
            for logs in arguments.logs:
                data = DataLoader([batch() for _ in range(steps)], batch_size=None)
                times: dict[str, list[float]] = {one: [] for one in contestants}
                for _ in range(arguments.rounds):
                    for one, run in contestants.items():
                        gc.collect()
                        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                            times[one] += [epoch_s / steps * 1e6 for epoch_s in run(make, data, logs)[1:]]
                step_us = {one: statistics.median(values) for one, values in times.items()}
                found.append({"model": name, "logs": logs, "step_us": step_us})
                by_hand = step_us["raw loop"]
                cells = [f"{value:.0f} ({value / by_hand:.2f})" for value in step_us.values()]
                rows.append([name, str(logs), *cells])
    print(f"Median microseconds a step (and the ratio to the hand-written loop); {machine_line(about)}\n")
    print(table(["model", "logged", *contestants], rows))
    if arguments.json:
        write_json(arguments.json, about | {"results": found})


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
