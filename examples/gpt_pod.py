"""A GPT of 1.3 billion parameters, to plan for a pod before it is rented.

    lightjax plan examples/gpt_pod.py:gpt_task --batch gpt_batch --topology v5e:16x16 --strategy fsdp

Its layers are one scan with remat around each, so that it compiles in the same time at any depth. `lj.shard_batch`
holds activations to the batch: without it the partitioner follows the weights, and every chip gets activations of all
256.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

import lightjax as lj

SEQUENCES_A_CHIP = 4

# Tensor parallel within every block: columns of what widens, rows of what narrows; fsdp over what is left.
fsdp_tensor = lj.Sharded(
    mesh={"data": -1, "tensor": 4},
    rules=[("(qkv|up)$", P(None, None, "tensor")), ("(out|down)$", P(None, "tensor", None))],
    fsdp=True,
)


def gpt_task(layers: int = 24, width: int = 2048, vocabulary: int = 32768, *, held: bool = True) -> lj.Task:
    """A decoder with remat around each block, float32 masters and bf16 compute; 1.3 billion parameters by default."""
    hold = lj.shard_batch if held else lambda x: x
    heads = width // 128

    def init(key: jax.Array, batch: Any) -> lj.TrainState:
        def normal(name: str, *shape: int) -> jax.Array:
            return 0.02 * jax.random.normal(jax.random.fold_in(key, len(name)), shape)

        params = {
            "embed": normal("embed", vocabulary, width),
            "position": normal("position", batch["tokens"].shape[1], width),
            "blocks": {
                "norm_1": jnp.ones((layers, width)),
                "qkv": normal("qkv", layers, width, 3 * width),
                "out": normal("out", layers, width, width),
                "norm_2": jnp.ones((layers, width)),
                "up": normal("up", layers, width, 4 * width),
                "down": normal("down", layers, 4 * width, width),
            },
            "norm": jnp.ones((width,)),
        }
        return lj.TrainState.create(params=params, optimizer=optax.adamw(3e-4), key=key)

    def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype) * scale

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        x = hold(x)
        batch, length, _ = x.shape
        qkv = (normed(x, layer["norm_1"]) @ layer["qkv"]).reshape(batch, length, 3, heads, width // heads)
        attended = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
        x = x + attended.reshape(batch, length, width) @ layer["out"]
        return x + jax.nn.gelu(normed(x, layer["norm_2"]) @ layer["up"]) @ layer["down"], None

    def loss_fn(state: lj.TrainState, batch: Any) -> Any:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state.params)
        tokens = batch["tokens"]
        x = hold(params["embed"][tokens] + params["position"])
        x, _ = jax.lax.scan(jax.checkpoint(block), x, params["blocks"])
        logits = (normed(x, params["norm"]) @ params["embed"].T).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return losses.mean(), {"loss": lj.Mean(losses)}

    return lj.Task.from_loss(init, loss_fn)


def gpt_batch(sequences: int = 256 * SEQUENCES_A_CHIP, length: int = 1024) -> Any:
    """Shapes of a batch over all devices."""
    return {"tokens": jax.ShapeDtypeStruct((sequences, length), jnp.int32)}
