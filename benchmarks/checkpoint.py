"""Times checkpoints: how long a save holds the training up, when it is on disk, how long it takes to come back.

python benchmarks/checkpoint.py --json checkpoint.json

States are float32 parameters of random numbers, in layers of one megabyte (of 4 kB in the smallest). Contestants take
turns in one process; each saves to a directory of its own, `--rounds` times, and the medians are shown. "blocking" is
the time until the training may go on, "complete" the time until everything is on disk. Lightning's plugins and
safetensors take part where they are installed.

The last table is a whole run of a small model (`--steps` steps), without checkpoints and with one every 50 steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import machine, machine_line, table, write_json

import lightjax as lj

SIZES = {"100 kB": (25, 1024), "50 MB": (50, 2**18), "1 GB": (1000, 2**18)}


def host_state(size: str) -> dict[str, np.ndarray]:
    layers, length = SIZES[size]
    rng = np.random.default_rng(0)
    return {f"layer_{i}": rng.normal(size=length).astype(np.float32) for i in range(layers)}


def lightjax_async(size: str) -> tuple[Callable[[Path], float], Callable[[Path], Any]]:
    state = jax.block_until_ready(jax.tree.map(jnp.asarray, host_state(size)))

    def save(path: Path) -> float:
        checkpointer = lj.Checkpointer(path)
        begun_s = time.perf_counter()
        checkpointer.save(1, state, metrics={})
        blocking_s = time.perf_counter() - begun_s
        checkpointer.close()
        return blocking_s

    return save, lambda path: jax.block_until_ready(lj.restore(path / "step_1", state))


def torch_save(size: str) -> tuple[Callable[[Path], float], Callable[[Path], Any]]:
    import torch

    state = {name: torch.from_numpy(array) for name, array in host_state(size).items()}

    def save(path: Path) -> float:
        path.mkdir()
        begun_s = time.perf_counter()
        torch.save(state, path / "state.pt")
        return time.perf_counter() - begun_s

    return save, lambda path: torch.load(path / "state.pt", weights_only=True)


def safetensors(size: str) -> tuple[Callable[[Path], float], Callable[[Path], Any]]:
    from safetensors.numpy import load_file, save_file

    state = host_state(size)

    def save(path: Path) -> float:
        path.mkdir()
        begun_s = time.perf_counter()
        save_file(state, path / "state.safetensors")
        return time.perf_counter() - begun_s

    return save, lambda path: load_file(path / "state.safetensors")


def lightning(size: str, asynchronous: bool) -> tuple[Callable[[Path], float], Callable[[Path], Any]]:
    import torch
    from lightning.pytorch.plugins import io

    state = {name: torch.from_numpy(array) for name, array in host_state(size).items()}

    def save(path: Path) -> float:
        path.mkdir()
        writer = io.TorchCheckpointIO()
        writer = io.AsyncCheckpointIO(writer) if asynchronous else writer
        begun_s = time.perf_counter()
        writer.save_checkpoint({"state_dict": state}, path / "last.ckpt")
        blocking_s = time.perf_counter() - begun_s
        writer.teardown()
        return blocking_s

    return save, lambda path: io.TorchCheckpointIO().load_checkpoint(path / "last.ckpt", weights_only=True)


CONTESTANTS = {
    "lightjax": (lightjax_async, "jax"),
    "torch.save": (torch_save, "torch"),
    "Lightning": (lambda size: lightning(size, asynchronous=False), "lightning"),
    "Lightning, asynchronous": (lambda size: lightning(size, asynchronous=True), "lightning"),
    "safetensors": (safetensors, "safetensors"),
}


def measured(size: str, rounds: int) -> dict[str, dict[str, float]]:
    """Returns medians in milliseconds, and bytes, by contestant."""
    taking_part = {name: make(size) for name, (make, needs) in CONTESTANTS.items() if find_spec(needs)}
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in taking_part}
    size_on_disk = {}
    for round_number in range(rounds + 1):
        for name, (save, restore) in taking_part.items():
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory, "checkpoint")
                begun_s = time.perf_counter()
                blocking_s = save(path)
                complete_s = time.perf_counter() - begun_s
                size_on_disk[name] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                begun_s = time.perf_counter()
                restore(path)
                if round_number:  # the first one imports and compiles
                    times[name].append((blocking_s, complete_s, time.perf_counter() - begun_s))
    return {
        name: dict(
            zip(
                ("blocking_ms", "complete_ms", "restore_ms"),
                (1e3 * statistics.median(column) for column in zip(*times[name], strict=True)),
                strict=True,
            )
        )
        | {"bytes": size_on_disk[name]}
        for name in taking_part
    }


def small_run(steps: int, every_n_train_steps: int | None) -> float:
    """Returns the microseconds a step of a small model's run takes, after a run that warms up."""

    def init(key: jax.Array, batch: Any) -> lj.TrainState:
        kernels = {f"layer_{i}": jax.random.normal(key, (64, 64)) / 8 for i in range(4)}
        return lj.TrainState.create(params=kernels, optimizer=optax.adam(1e-3), key=key)

    def loss_fn(state: lj.TrainState, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
        hidden = batch["x"]
        for i in range(4):
            hidden = jnp.tanh(hidden @ state.params[f"layer_{i}"])
        losses = (hidden - batch["x"]).mean(axis=-1) ** 2
        return losses.mean(), {"loss": losses.mean()}

    task = lj.Task.from_loss(init, loss_fn)
    data = lj.ArrayLoader({"x": np.random.default_rng(0).normal(size=(6400, 64)).astype(np.float32)}, 64, shuffle=True)
    with tempfile.TemporaryDirectory() as directory:
        # Both cut their calls at every 50 steps, so that only the checkpoints differ.
        keeper = [] if every_n_train_steps is None else [lj.ModelCheckpoint(every_n_train_steps=every_n_train_steps)]
        trainer = lj.Trainer(
            max_steps=steps,
            steps_per_call=50,
            log_every_n_steps=50,
            callbacks=keeper,
            enable_checkpointing=bool(keeper),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=directory,
        )
        trainer.fit(task, data)
        begun_s = time.perf_counter()
        trainer.fit(task, data)
        return 1e6 * (time.perf_counter() - begun_s) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="saves of each contestant (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--steps", type=int, default=20_000, help="of the small run (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print(machine_line(machine()))
    found = {}
    for size in arguments.sizes:
        found[size] = measured(size, arguments.rounds)
        rows = [
            [
                name,
                *(f"{row[key]:.3g}" for key in ("blocking_ms", "complete_ms", "restore_ms")),
                f"{row['bytes'] / 1e6:.4g}",
            ]
            for name, row in found[size].items()
        ]
        print(f"\n**{size}**\n")
        print(table(["contestant", "blocking, ms", "complete, ms", "restore, ms", "MB on disk"], rows))
    runs: dict[str, list[float]] = {"without": [], "every 50 steps": []}
    for _ in range(arguments.rounds):
        for name, every in (("without", None), ("every 50 steps", 50)):
            runs[name].append(small_run(arguments.steps, every))
    medians = {name: statistics.median(times) for name, times in runs.items()}
    ratio = medians["every 50 steps"] / medians["without"]
    print(f"\n**A small model, {arguments.steps} steps**\n")
    print(table(["checkpoints", "us a step"], [[name, f"{value:.1f}"] for name, value in medians.items()]))
    print(f"\nratio {ratio:.3f}")
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "saves": found, "small_run_us": medians})


if __name__ == "__main__":
    main()
