"""A training step of torch models: in torch, Lightning, ported to JAX by lightjax and torchax, and by hand in flax.

All start from the same weights, see one batch again and again, and update with AdamW. They take turns: a window of
steps each, then the next round. Torch, JAX and torchax have a process each, since torchax changes torch for a whole
process. What is not installed is left out, and its row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import machine, machine_line, table, write_json

# Steps of a window.
STEPS = {"linear": 300, "mlp": 100, "resnet18": 2, "lstm": 10, "gpt": 6, "vit": 3}
# Steps before the first window, whose losses are compared.
COMPARED = 5
# The process of every contestant.
CONTESTANTS = {
    "torch": "torch",
    "torch.compile": "torch",
    "Lightning": "torch",
    "flax": "jax",
    "port": "jax",
    "torchax": "torchax",
}


@dataclass
class Runner:
    """A contestant that is ready to train one model.

    Attributes:
      window: trains so many steps; returns the seconds of one and the last loss.
      losses: of the first steps.
      trace_s: seconds until the compiler had its program.
      compile_s: seconds of the compiler.
      call_us: how long a call takes before it returns, the device idle.
    """

    window: Callable[[int], float]
    losses: list[float]
    trace_s: float | None = None
    compile_s: float | None = None
    call_us: float | None = None


def torch_runner(name: str, compiled: bool) -> Runner:
    """A loop by hand, eager or with the loss compiled by torch.compile."""
    import bridge_torch
    import torch

    module, batch = bridge_torch.make(name)
    optimizer = bridge_torch.optimizer_of(module)
    loss_of = torch.compile(bridge_torch.loss_of) if compiled else bridge_torch.loss_of

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(module, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def window(steps: int) -> float:
        begun = time.perf_counter()
        for _ in range(steps):
            step()
        return (time.perf_counter() - begun) / steps

    begun = time.perf_counter()
    losses = [float(step())]
    first_s = time.perf_counter() - begun
    losses += [float(step()) for _ in range(COMPARED - 1)]
    # Dynamo and Inductor work in one call: what a first step takes longer than others.
    return Runner(window, losses, None, first_s - window(2) if compiled else None)


def lightning_runner(name: str) -> Runner:
    """Lightning's trainer, with its defaults but no logger and no checkpoints; the second of two epochs is timed."""
    import bridge_torch
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    net, batch = bridge_torch.make(name)
    losses: list[float] = []

    class Module(bridge_torch.module_class(pl.LightningModule)):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if len(losses) < COMPARED:
                losses.append(float(outputs["loss"]))

        def on_train_epoch_start(self) -> None:
            self.begun = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            self.seconds = time.perf_counter() - self.begun

    module = Module(net)

    def window(steps: int, epochs: int = 2) -> float:
        options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pl.Trainer(max_epochs=epochs, **options).fit(module, DataLoader([batch] * steps, batch_size=None))
        return module.seconds / steps

    window(COMPARED, 1)
    return Runner(window, losses)


def jax_runner(make: Callable[[], tuple[Any, Callable[..., Any], Any]]) -> Runner:
    """Compiles `step(state, batch) -> state, loss` and calls it."""
    import jax

    begun = time.perf_counter()
    state, step, batch = make()
    lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
    trace_s = time.perf_counter() - begun
    begun = time.perf_counter()
    compiled = lowered.compile()
    compile_s = time.perf_counter() - begun
    state = jax.tree.map(lambda leaf: leaf.copy(), state)

    def window(steps: int) -> float:
        nonlocal state
        begun, loss = time.perf_counter(), None
        for _ in range(steps):
            state, loss = compiled(state, batch)
        jax.block_until_ready((state, loss))
        return (time.perf_counter() - begun) / steps

    losses, calls = [], []
    for _ in range(COMPARED):
        begun = time.perf_counter()
        state, loss = compiled(state, batch)
        calls.append(time.perf_counter() - begun)
        losses.append(float(jax.block_until_ready((state, loss))[1]))
    return Runner(window, losses, trace_s, compile_s, statistics.median(calls) * 1e6)


def flax_runner(name: str) -> Runner:
    """The model written by hand, with optax."""
    import bridge_flax
    import bridge_torch
    import jax
    import optax

    module, batch = bridge_torch.make(name)
    weights = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    inputs, labels = bridge_flax.batch_of(*(tensor.numpy() for tensor in batch))

    def make() -> tuple[Any, Callable[..., Any], Any]:
        model = bridge_flax.MODELS[name]()
        shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
        variables = bridge_flax.variables_of(shapes, weights)
        optimizer = optax.adamw(bridge_torch.LEARNING_RATE, weight_decay=bridge_torch.WEIGHT_DECAY)
        kept = {key: value for key, value in variables.items() if key != "params"}

        def loss_fn(params: Any, kept: Any, inputs: Any, labels: Any) -> Any:
            logits, new = model.apply({"params": params, **kept}, inputs, mutable=list(kept))
            logits = logits.reshape(-1, logits.shape[-1])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels.reshape(-1)).mean(), new

        def step(state: Any, batch: Any) -> Any:
            params, kept, moments = state
            (loss, kept), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, kept, *batch)
            updates, moments = optimizer.update(grads, moments, params)
            return (optax.apply_updates(params, updates), kept, moments), loss

        state = variables["params"], kept, optimizer.init(variables["params"])
        return state, step, (inputs, labels)

    return jax_runner(make)


def port_runner(name: str) -> Runner:
    """The torch model, captured and compiled by lightjax; capturing counts as tracing."""
    import bridge_torch
    import jax

    from lightjax_torch import LightningModule, from_torch
    from lightjax_torch.arrays import to_jax

    net, batch = bridge_torch.make(name)
    module, arrays = bridge_torch.module_class(LightningModule)(net), to_jax(batch)

    def make() -> tuple[Any, Callable[..., Any], Any]:
        task = from_torch(module, backend="jax")

        def step(state: Any, batch: Any) -> Any:
            state, metrics = task.train_step(state, batch)
            return state, metrics["loss"]

        return task.init(jax.random.key(0), arrays), step, arrays

    return jax_runner(make)


def torchax_runner(name: str) -> Runner:
    """Torchax's functional module with optax; it leaves BatchNorm's statistics as they are."""
    import bridge_torch
    import jax
    import optax
    import torch
    import torchax
    from torchax import interop
    from torchax.ops import mappings

    net, batch = bridge_torch.make(name)
    trained = {key for key, p in net.named_parameters() if p.requires_grad}
    with torchax.default_env():
        weights, apply = torchax.extract_jax(net)
        arrays = tuple(mappings.t2j(tensor) for tensor in batch)
    env = torchax.default_env()

    def make() -> tuple[Any, Callable[..., Any], Any]:
        params = {key: value for key, value in weights.items() if key in trained}
        kept = {key: value for key, value in weights.items() if key not in trained}
        optimizer = optax.adamw(bridge_torch.LEARNING_RATE, weight_decay=bridge_torch.WEIGHT_DECAY)

        def loss_fn(params: Any, kept: Any, inputs: Any, labels: Any) -> Any:
            logits = apply({**params, **kept}, (inputs,))
            with env:
                flat, labels = interop.torch_view((logits, labels))
                loss = torch.nn.functional.cross_entropy(flat.flatten(0, -2), labels.flatten())
                return interop.jax_view(loss)

        def step(state: Any, batch: Any) -> Any:
            params, kept, moments = state
            loss, grads = jax.value_and_grad(loss_fn)(params, kept, *batch)
            updates, moments = optimizer.update(grads, moments, params)
            return (optax.apply_updates(params, updates), kept, moments), loss

        return (params, kept, optimizer.init(params)), step, arrays

    return jax_runner(make)


RUNNERS: dict[str, Callable[[str], Runner]] = {
    "torch": lambda name: torch_runner(name, compiled=False),
    "torch.compile": lambda name: torch_runner(name, compiled=True),
    "Lightning": lightning_runner,
    "flax": flax_runner,
    "port": port_runner,
    "torchax": torchax_runner,
}


def work(channel: Any) -> None:
    """The loop of a process: `(contestant, model, steps)`, steps 0 to get ready; answers with a dict."""
    warnings.simplefilter("ignore")
    ready: dict[tuple[str, str], Runner] = {}
    while (order := channel.recv()) is not None:
        contestant, model, steps = order
        try:
            if not steps:
                ready = {key: one for key, one in ready.items() if key[1] == model}
                found = ready[contestant, model] = RUNNERS[contestant](model)
                answer = {key: value for key, value in vars(found).items() if key != "window"}
            else:
                answer = {"seconds": ready[contestant, model].window(steps)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        channel.send(answer)


class Workers:
    """One process each for torch, JAX and torchax; who is not asked waits for a message."""

    def __init__(self) -> None:
        self.channels: dict[str, Any] = {}
        self.processes: list[Any] = []

    def ask(self, contestant: str, model: str, steps: int) -> dict[str, Any]:
        """Sends an order and waits for the answer."""
        name = CONTESTANTS[contestant]
        if name not in self.channels:
            spawned = multiprocessing.get_context("spawn")
            self.channels[name], theirs = spawned.Pipe()
            self.processes.append(spawned.Process(target=work, args=(theirs,), daemon=True))
            self.processes[-1].start()
            theirs.close()
        try:
            self.channels[name].send((contestant, model, steps))
            return self.channels[name].recv()
        except (EOFError, BrokenPipeError):
            del self.channels[name]
            return {"failed": "its process ended"}

    def end(self) -> None:
        """Ends the processes."""
        for channel in self.channels.values():
            channel.send(None)
        for process in self.processes:
            process.join()


def measure(model: str, contestants: list[str], rounds: int, steps: int, workers: Workers) -> dict[str, Any]:
    """Gets all contestants ready, then lets them take turns; the next round goes the other way."""
    rows = {one: workers.ask(one, model, 0) for one in contestants}
    running = [one for one in contestants if "failed" not in rows[one]]
    times: dict[str, list[float]] = {one: [] for one in running}
    for number in range(rounds + 1):
        for one in running if number % 2 else running[::-1]:
            answer = workers.ask(one, model, steps)
            if "failed" in answer:
                rows[one] |= answer
            elif number:  # the first round warms up
                times[one].append(answer["seconds"] * 1e3)
    for one, found in times.items():
        if len(found) == rounds:
            rows[one]["ms"] = found
    return rows


def describe(model: str, rows: dict[str, Any]) -> str:
    """Returns the table of a model."""
    median = {one: statistics.median(row["ms"]) for one, row in rows.items() if "ms" in row}
    by_hand, eager = median.get("flax"), rows.get("torch", {}).get("losses")

    def number(value: float | None, form: str = ".1f") -> str:
        return "-" if value is None else format(value, form)

    lines = []
    for one, row in rows.items():
        if one not in median:
            lines.append([f"{one} ({row['failed']})"[:90], *["-"] * 8])
            continue
        off = [None] * 2 if eager is None else [abs(row["losses"][at] / eager[at] - 1) for at in (0, -1)]
        lines.append(
            [
                one,
                number(median[one], ".2f"),
                f"{min(row['ms']):.2f}-{max(row['ms']):.2f}",
                number(by_hand and median[one] / by_hand, ".2f"),
                number(row["trace_s"], ".2f"),
                number(row["compile_s"], ".2f"),
                number(row["call_us"], ".0f"),
                *(number(one, ".0e") for one in off),
            ]
        )
    head = [
        "contestant",
        "ms a step",
        "range",
        "of flax",
        "trace, s",
        "compile, s",
        "call, µs",
        "loss 1 off by",
        f"loss {COMPARED}",
    ]
    return f"### {model}\n\n{table(head, lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(STEPS), default=list(STEPS))
    usual = [one for one in CONTESTANTS if one != "torch.compile"]
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=usual)
    parser.add_argument("--compile", action="store_true", help="with torch.compile, too: minutes of compilation")
    parser.add_argument("--rounds", type=int, default=5, help="timed windows of each contestant (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    wanted = {*arguments.contestants, *(["torch.compile"] if arguments.compile else [])}
    contestants = [one for one in CONTESTANTS if one in wanted]
    about = machine() | {"rounds": arguments.rounds, "results": {}}
    print(f"{machine_line(about)} Medians of {arguments.rounds} rounds.\n")
    workers = Workers()
    for model in arguments.models:
        rows = about["results"][model] = measure(model, contestants, arguments.rounds, STEPS[model], workers)
        print(describe(model, rows), flush=True)
        if arguments.json:
            write_json(arguments.json, about)
    workers.end()


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
