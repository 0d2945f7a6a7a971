"""Counts how many of the ledger's float32 samples torchax computes with their gradients.

torchax, the other bridge from torch to JAX, gets the samples of the ledger, each as one compiled program with its
gradients by `jax.vjp`. Random operations are left out: the device that torchax tells torch of keeps no generator's
state. A number counts as right within the tolerances of the database, or else within 1e-3 of the largest, where the
ledger looks closer.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchax  # pyright: ignore[reportMissingImports]
from torchax import interop  # pyright: ignore[reportMissingImports]

from lightjax_torch.arrays import to_jax
from tests.bridge.opinfo import ledger
from tests.bridge.opinfo.samples import Case, difference, differentiable, in_torch, operators, quiet, samples

MOST = 16  # samples of most operators in the ledger; it has all of the others'


def run(op: Any, sample: Any) -> str:
    """Returns "passes", "wrong: ..." or what torchax, or JAX behind it, said; "" where torch itself fails."""
    try:
        case = Case(op, sample)
        theirs, seeds, their_gradients = in_torch(case, True)
    except Exception:
        return ""

    def compute(differentiated: list[jax.Array], others: list[jax.Array]) -> tuple[list[Any], list[Any]]:
        def outputs(differentiated: list[jax.Array]) -> list[jax.Array]:
            with torchax.default_env():
                found = case(interop.torch_view(differentiated), interop.torch_view(others))
                return [interop.jax_view(one) for one in found]

        found, pullback = jax.vjp(outputs, differentiated)
        if len(found) != len(seeds) or not any(seed is not None for seed in seeds):
            return found, []
        (gradients,) = pullback([_cotangent(one, seed) for one, seed in zip(found, seeds, strict=True)])
        return found, gradients

    try:
        given = [[to_jax(one) for one in case.tensors(places)] for places in (case.differentiated, case.others)]
        with quiet():
            ours, gradients = jax.jit(compute)(*given)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    if len(ours) != len(theirs):
        return "wrong: another number of outputs"
    for found, expected in ((ours, theirs), (gradients, their_gradients if gradients else [])):
        for one, other in zip(found, expected, strict=True):
            if (said := difference(op, one, other)) and not _close(one, other):
                return f"wrong: {said}"
    return "passes"


def _close(ours: jax.Array, theirs: torch.Tensor) -> bool:
    """Whether arrays of one shape differ by rounding."""
    if ours is None or theirs is None or ours.shape != tuple(theirs.shape):
        return False
    found, expected = np.asarray(ours), theirs.detach().numpy(force=True)
    scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)
    return bool(np.allclose(found, expected, rtol=1e-3, atol=1e-3 * scale, equal_nan=True))


def _cotangent(output: jax.Array, seed: torch.Tensor | None) -> Any:
    if not jnp.issubdtype(output.dtype, jnp.inexact):
        return np.zeros(output.shape, jax.dtypes.float0)
    return jnp.zeros_like(output) if seed is None else to_jax(seed).astype(output.dtype)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bridge.opinfo.torchax_counts", description=__doc__)
    parser.add_argument("--only", default="", help="operators, separated by commas")
    parser.add_argument("--into", type=Path, help="JSON lines of outcomes; what it has is not run again")
    request = parser.parse_args()
    only = [name for name in request.only.split(",") if name]
    lines = ledger.load()
    known = request.into.read_text().splitlines() if request.into and request.into.exists() else []
    outcomes: dict[str, list[str]] = dict(map(json.loads, known))
    chosen = [op for op in operators() if not only or op.full_name in only]
    for op in chosen:
        if op.full_name in outcomes or op.full_name not in lines or not differentiable(op, torch.float32):
            continue
        if "random" in lines[op.full_name].note:
            continue
        line = lines[op.full_name]
        most = MOST if line.float32.expressible <= MOST else 1 << 30
        outcomes[op.full_name] = [run(op, sample) for sample in samples(op, torch.float32, most)]
        jax.clear_caches()
        if request.into:
            with request.into.open("a") as file:
                file.write(json.dumps([op.full_name, outcomes[op.full_name]]) + "\n")
    counts: Counter[str] = Counter()
    for name, found in outcomes.items():
        ours = lines[name].counts["gradient"]
        counts["expressible"] += ours.expressible
        counts["here"] += ours.passed
        counts["torchax"] += min(ours.expressible, sum(one == "passes" for one in found))
        counts["torchax wrong"] += sum(one.startswith("wrong") for one in found)
    print(f"{len(outcomes)} operators, torchax {torchax.__version__}: {dict(counts)}")


if __name__ == "__main__":
    main()
