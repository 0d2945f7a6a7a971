"""Train steps compiled by the real TPU compiler for pods that are not there."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
import jax
import lightjax as lj
from gpt_pod import gpt_batch, gpt_task

for name, topology, strategy, batch, task, steps in json.loads(sys.argv[1]):
    trainer = lj.Trainer(max_epochs=1, strategy=strategy)
    plan = trainer.plan(gpt_task(**task), gpt_batch(*batch), topology=topology, steps_per_call=steps)
    print(json.dumps([name, str(plan), json.loads(plan.to_json())]))

if sys.argv[2] == "ported":
    import numpy as np, torch
    from lightjax_torch import from_torch

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(1 << 16, 1 << 16)
            self.out = torch.nn.Linear(1 << 16, 1)

        def training_step(self, batch, batch_idx):
            return self.out(self.embed(batch)).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    with torch.device("meta"):
        task = from_torch(Head(), backend="jax")
    trainer = lj.Trainer(max_epochs=1, strategy="fsdp")
    plan = trainer.plan(task, np.zeros(64, np.int32), topology="v5e:4x4")
    print(json.dumps(["ported", str(plan), json.loads(plan.to_json())]))
"""
SMALL = {"layers": 2, "width": 128, "vocabulary": 1024}
CASES = [
    ("fsdp", "v5e:16x16", "fsdp", [1024], {}, 1),
    ("fsdp v5p", "v5p:4x4x4", "fsdp", [256], {}, 1),
    ("fsdp, not held", "v5e:16x16", "fsdp", [2048], {"held": False}, 1),
    ("replicated", "v5e:4x4", "jit", [64], {}, 1),
    ("pmap", "v5e:2x2", "pmap", [8, 128], SMALL, 1),
    ("fused", "v5e:2x2", "fsdp", [8, 128], SMALL, 4),
]

pytestmark = [
    pytest.mark.libtpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu, the TPU compiler, is not installed: pip install 'lightjax[tpu-plan]'",
    ),
]


@pytest.fixture(scope="module")
def plans():
    """Plans by name, compiled in one process of their own: the compiler writes to the terminal as it pleases."""
    # The least effort for speed takes a sixth of the time; memory and messages differ by less than a tenth.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
    paths = [str(ROOT), str(ROOT / "examples"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    bridge = importlib.util.find_spec("torch") is not None
    command = [sys.executable, "-c", PROGRAM, json.dumps(CASES), "ported" if bridge else ""]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: plan | {"text": text} for name, text, plan in map(json.loads, filter(None, done.stdout.splitlines()))}


@pytest.mark.parametrize("name", ["fsdp", "fsdp v5p"])
def test_a_transformer_of_1_3_billion_parameters_fits_with_fsdp(plans, name):
    plan = plans[name]
    assert plan["fits"] is True
    parameters = 24 * (2048 * 2048 * 12 + 2 * 2048) + 32768 * 2048 + 1024 * 2048 + 2048
    assert parameters == pytest.approx(1.277e9, rel=1e-3)
    # Parameters and both moments of Adam in float32, over all chips.
    assert plan["memory"]["argument"] == pytest.approx(12 * parameters / plan["devices"], rel=0.05)
    # Gathered for use and reduced for the gradient; permutes are how the compiler overlaps either with products.
    kinds = {one["kind"] for one in plan["collectives"]}
    assert kinds <= {"all-gather", "reduce-scatter", "all-reduce", "collective-permute"}
    # bf16 weights gathered for the forward pass, again for the backward pass, and gradients reduced in float32 at most.
    assert sum(one["bytes"] for one in plan["collectives"]) < 1.5 * (2 + 2 + 4) * parameters


def test_fsdp_with_activations_that_are_not_held_does_not_fit_and_the_plan_names_them(plans):
    plan = plans["fsdp, not held"]
    assert plan["fits"] is False
    assert plan["memory"]["peak"] > plan["memory"]["limit"] > 15e9
    # The whole batch in every chip, [2048, 1024, 2048]: 8 GiB, in the products of a block and in their gradient.
    largest = plan["temporaries"][0]
    assert (largest["shape"], largest["bytes"]) == ("bf16[2048,1024,2048]", 2**33)
    assert "while/body" in largest["name"]
    assert plan["unsplit"] == ["bf16[2048,1024,2048]"]
    assert "bf16[2048,1024,2048]: all rows of the batch on every device" in plan["text"]
    assert "x = lj.shard_batch(x)" in plan["text"]


def test_a_replicated_transformer_does_not_fit_a_v5e(plans):
    plan = plans["replicated"]
    assert plan["fits"] is False
    assert plan["memory"]["peak"] > 12 * 1.277e9
    assert set(plan["shardings"].values()) == {"whole"}
    assert plan["unsplit"] == []
    assert "does not fit: it needs" in plan["text"]


@pytest.mark.parametrize("name", ["pmap", "fused"])
def test_pmap_and_several_steps_a_call_compile_too(plans, name):
    assert plans[name]["fits"] is True
    assert plans[name]["steps"] == (4 if name == "fused" else 1)
    assert any(one["kind"] in ("all-reduce", "reduce-scatter") for one in plans[name]["collectives"])


def test_a_torch_module_of_four_billion_parameters_is_planned_without_memory(plans):
    pytest.importorskip("torch")
    plan = plans["ported"]
    assert plan["devices"] == 16
    assert plan["fits"] is True
    # Parameters and both moments of Adam in float32, over all chips; no host of these tests has 51 GB.
    assert plan["memory"]["argument"] == pytest.approx(12 * 2**32 / 16, rel=0.05)
    assert plan["shardings"]["params/embed.weight"] == "data, None"
