"""Memory and time of a GPT's training step by precision, microbatches and rematerialization.

Memory is what the compiled program needs beside its arguments (`memory_analysis`), on whatever device jax finds. Steps
run in turns over all programs, and the fastest of each counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import machine, machine_line, table, write_json

import lightjax as lj

LAYERS, HEADS, VOCABULARY = 12, 4, 256
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true")


def make_init(width: int, context: int) -> Any:
    """Returns the task's init: parameters of all layers stacked, [layers, ...]."""

    def init(key: jax.Array, batch: Any) -> lj.TrainState:
        shapes = {
            "qkv": (LAYERS, width, 3 * width),
            "mix": (LAYERS, width, width),
            "up": (LAYERS, width, 4 * width),
            "down": (LAYERS, 4 * width, width),
            "token": (VOCABULARY, width),
            "position": (context, width),
        }
        keys = jax.random.split(key, len(shapes))
        params = {
            name: 0.02 * jax.random.normal(one, shape) for one, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        params |= {"norm1": jnp.ones((LAYERS, width)), "norm2": jnp.ones((LAYERS, width)), "norm": jnp.ones(width)}
        # Adam's default eps is 0 in float16.
        return lj.TrainState.create(params=params, optimizer=optax.adamw(3e-4, eps=1e-4), key=key)

    return init


def make_loss(remat: bool) -> Any:
    """Returns the loss: the next token's cross-entropy, in float32."""

    def block(hidden: jax.Array, layer: Any) -> jax.Array:
        batch, context, width = hidden.shape
        qkv = (norm(hidden, layer["norm1"]) @ layer["qkv"]).reshape(batch, context, 3, HEADS, width // HEADS)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) / np.sqrt(width // HEADS)
        causal = np.tril(np.ones((context, context), bool))[None, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -1e9)).astype(hidden.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        hidden = hidden + mixed.reshape(hidden.shape) @ layer["mix"]
        return hidden + jax.nn.gelu(norm(hidden, layer["norm2"]) @ layer["up"]) @ layer["down"]

    if remat:
        block = lj.remat(block)

    def loss_fn(state: lj.TrainState, batch: Any) -> tuple[Any, Any]:
        params, tokens = state.params, batch["tokens"]
        hidden = params["token"][tokens[:, :-1]] + params["position"][None]
        layers = {name: params[name] for name in ("qkv", "mix", "up", "down", "norm1", "norm2")}
        hidden, _ = jax.lax.scan(lambda hidden, layer: (block(hidden, layer), None), hidden, layers)
        logits = (norm(hidden, params["norm"]) @ params["token"].T).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return lj.Mean(losses), {"loss": lj.Mean(losses)}

    return loss_fn


def norm(hidden: jax.Array, weight: jax.Array) -> jax.Array:
    """Root-mean-square norm, computed in float32."""
    wide = hidden.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + 1e-6)
    return (wide * scale).astype(hidden.dtype) * weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128, help="of the model (default: %(default)s)")
    parser.add_argument("--context", type=int, default=128, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="steps timed of each (default: %(default)s)")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()

    rng = np.random.default_rng(0)
    batch = {"tokens": rng.integers(0, VOCABULARY, (asked.batch_size, asked.context + 1)).astype(np.int32)}
    init = jax.jit(make_init(asked.width, asked.context))
    found, running = [], []
    for precision, microbatches, remat in itertools.product(asked.precisions, (1, 4), (False, True)):
        state = init(jax.random.key(0), batch).with_policy(precision=precision, microbatches=microbatches)
        task = lj.Task.from_loss(init, make_loss(remat))
        program = jax.jit(task.train_step, donate_argnums=0).lower(state, batch).compile()
        memory = program.memory_analysis()
        found.append(
            {
                "precision": precision,
                "microbatches": microbatches,
                "remat": remat,
                "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
                "temporary_bytes": memory.temp_size_in_bytes,
                "step_s": float("inf"),
            }
        )
        running.append((program, state))
    for _ in range(asked.rounds + 1):
        for row, (index, (program, state)) in zip(found, enumerate(running), strict=True):
            begun_s = time.perf_counter()
            state, metrics = jax.block_until_ready(program(state, batch))
            row["step_s"] = min(row["step_s"], time.perf_counter() - begun_s)
            row["loss"] = float(metrics["loss"].compute())
            running[index] = program, state

    about = machine() | {"device": jax.devices()[0].device_kind}
    plain = found[0]
    rows = [
        [
            row["precision"],
            str(row["microbatches"]),
            "blocks" if row["remat"] else "-",
            f"{row['state_bytes'] / 1e6:.1f}",
            f"{row['temporary_bytes'] / 1e6:.1f}",
            f"{row['temporary_bytes'] / plain['temporary_bytes']:.2f}",
            f"{row['step_s'] * 1e3:.0f}",
            f"{row['step_s'] / plain['step_s']:.2f}",
            f"{row['loss']:.3f}",
        ]
        for row in found
    ]
    head = [
        "precision",
        "microbatches",
        "remat",
        "state MB",
        "temporary MB",
        "of first",
        "ms a step",
        "of first",
        "loss",
    ]
    print(machine_line(about) + f" Device: {about['device']}.\n")
    print(table(head, rows))
    if asked.json:
        write_json(asked.json, {"machine": about, "steps": found})


if __name__ == "__main__":
    main()
