"""Trains a GAN on scikit-learn's handwritten digits: two `TrainState`s, two optimizers, one train step.

Run it with `python examples/gan.py`; `--help` lists what can be changed. Every argument of the trainer that is about
gradients (`--precision`, `--accumulate-grad-batches`) holds for both networks.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import lightjax as lj

LATENT = 16


class Networks(NamedTuple):
    """The state: any pytree that holds `TrainState`s."""

    generator: lj.TrainState
    discriminator: lj.TrainState


class Generator(nn.Module):
    """Maps noise [batch, LATENT] to images [batch, 64] between 0 and 1."""

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(128)(noise))
        hidden = nn.relu(nn.Dense(128)(hidden))
        return nn.sigmoid(nn.Dense(64)(hidden))


class Discriminator(nn.Module):
    """Maps images [batch, 64] to logits [batch] of being real."""

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        hidden = nn.leaky_relu(nn.Dense(128)(image), 0.2)
        hidden = nn.leaky_relu(nn.Dense(128)(hidden), 0.2)
        return nn.Dense(1)(hidden)[:, 0]


GENERATOR, DISCRIMINATOR = Generator(), Discriminator()


def init(key: jax.Array, batch: Any) -> Networks:
    """Makes both networks, each with an optimizer and a key of its own."""
    keys = jax.random.split(key)
    optimizer = optax.adam(1e-3, b1=0.5)
    noise = jnp.zeros((1, LATENT))
    return Networks(
        lj.TrainState.create(params=GENERATOR.init(keys[0], noise), optimizer=optimizer, key=keys[0]),
        lj.TrainState.create(params=DISCRIMINATOR.init(keys[1], batch["image"]), optimizer=optimizer, key=keys[1]),
    )


def images(generator: lj.TrainState, key: jax.Array, count: int) -> jax.Array:
    """Draws images [count, 64]."""
    return GENERATOR.apply(generator.params, jax.random.normal(key, (count, LATENT)))


def discriminator_loss(discriminator: lj.TrainState, batch: Any, generator: lj.TrainState) -> tuple[Any, Any]:
    """Real images shall have high logits, drawn ones low."""
    drawn = images(generator, discriminator.key_for("noise"), len(batch["image"]))
    real, fake = (DISCRIMINATOR.apply(discriminator.params, one) for one in (batch["image"], drawn))
    losses = nn.softplus(-real) + nn.softplus(fake)
    return losses.mean(), {"discriminator_loss": lj.Mean(losses), "real_accuracy": lj.Mean(real > 0)}


def generator_loss(generator: lj.TrainState, batch: Any, discriminator: lj.TrainState) -> tuple[Any, Any]:
    """Drawn images shall have high logits."""
    drawn = images(generator, generator.key_for("noise"), len(batch["image"]))
    losses = nn.softplus(-DISCRIMINATOR.apply(discriminator.params, drawn))
    return losses.mean(), {"generator_loss": lj.Mean(losses)}


def train_step(state: Networks, batch: Any) -> tuple[Networks, Any]:
    """Moves the discriminator, then the generator against the new one."""
    generator, discriminator = state
    grads, about_discriminator = lj.grad(discriminator_loss)(discriminator, batch, generator=generator)
    discriminator = discriminator.apply_gradients(grads)
    grads, about_generator = lj.grad(generator_loss)(generator, batch, discriminator=discriminator)
    generator = generator.apply_gradients(grads)
    return Networks(generator, discriminator), about_discriminator | about_generator


def predict_step(state: Networks, batch: Any) -> jax.Array:
    """Draws an image for every seed."""
    draw = jax.vmap(lambda seed: images(state.generator, jax.random.key(seed), 1)[0])
    return draw(batch["seed"])


def distance(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Fréchet distance of two sets of images, as normal distributions of pixels."""
    means, covariances = zip(*((one.mean(0), np.cov(one, rowvar=False)) for one in (first, second)), strict=True)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0.0))
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(covariances[0] + covariances[1]) - 2 * roots.sum())


def main(arguments: list[str] | None = None) -> tuple[float, float]:
    """Trains, draws images, and returns their distance from the digits before and after."""
    parser = argparse.ArgumentParser(description="Train a GAN on handwritten digits.")
    parser.add_argument("--max-epochs", type=int, default=150, help="epochs (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="examples in a batch (default: %(default)s)")
    parser.add_argument("--precision", default=None, help="such as bf16-mixed (default: float32)")
    parser.add_argument("--accumulate-grad-batches", type=int, default=1, help="batches of a step (default: 1)")
    asked = parser.parse_args(arguments)

    digits = (load_digits().data / 16).astype(np.float32)
    task = lj.Task(init, train_step, predict_step=predict_step)
    trainer = lj.Trainer(
        max_epochs=asked.max_epochs,
        precision=asked.precision,
        accumulate_grad_batches=asked.accumulate_grad_batches,
        enable_checkpointing=False,
    )
    seeds = lj.ArrayLoader({"seed": np.arange(1000, dtype=np.uint32)}, 1000)
    before = init(jax.random.key(0), {"image": digits[:1]})
    untrained = distance(trainer.predict(task, seeds, state=before), digits)
    result = trainer.fit(task, lj.ArrayLoader({"image": digits}, asked.batch_size, shuffle=True, seed=0))
    drawn = trainer.predict(task, seeds, state=result.state)
    trained = distance(drawn, digits)
    for row in drawn[:4].reshape(4, 8, 8).transpose(1, 0, 2).reshape(8, 32):
        print("".join(" .:-=+*#%@"[min(9, int(value * 10))] for value in row))
    print(f"distance from the digits: {untrained:.2f} before, {trained:.2f} after")
    return untrained, trained


if __name__ == "__main__":
    main()
