"""Plans for the devices that are there, and what is read from a program's text."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lightjax as lj
from lightjax.cli import main
from lightjax.engine import memory
from lightjax.engine.compiler import Compiler
from lightjax.engine.hlo import Collective, collectives, largest_temporaries
from tests.models import digit_like_data, mlp_task, quiet

BATCH = {"x": jax.ShapeDtypeStruct((16, 16), jnp.float32), "y": jax.ShapeDtypeStruct((16,), jnp.int32)}


def test_the_step_of_a_plan_trains_in_a_loop_of_ones_own():
    task = mlp_task()
    plan = quiet(max_epochs=1, devices=8, strategy="fsdp").plan(task, BATCH)
    loader = lj.ArrayLoader(digit_like_data(64), 16)
    state = plan.create_state(jax.random.key(0), next(loader.epoch(0)))
    for batch in loader.epoch(0):
        state, _ = plan.train_step(state, batch)
    reference = quiet(max_epochs=1, devices=1).fit(task, loader)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5),
        state.params,
        reference.state.params,
    )


def test_flops_are_those_of_the_matrix_products():
    plan = quiet(max_epochs=1, devices=1).plan(mlp_task(), BATCH)
    products = 16 * 32 + 32 * 32 + 32 * 10
    # Forward, and backward by weights and by inputs, where the first layer needs none of the latter.
    assert plan.flops == 2 * 16 * (3 * products - 16 * 32)


def test_a_plan_counts_what_devices_hold_and_send_with_donation_once():
    jit = quiet(max_epochs=1, devices=8, strategy="jit").plan(mlp_task(), BATCH)
    state_bytes = 3 * sum(4 * (a * b + b) for a, b in ((16, 32), (32, 32), (32, 10)))
    assert jit.memory.argument == pytest.approx(state_bytes + 16 * 17 * 4 // 8, abs=64)
    assert jit.memory.donated == pytest.approx(state_bytes, abs=64)
    assert jit.memory.peak < 2 * state_bytes + jit.memory.temporary + jit.memory.program
    assert jit.fits is None  # nobody knows what the CPU has
    assert {one.kind for one in jit.collectives} == {"all-reduce"}
    assert set(jit.shardings.values()) == {"whole"}
    fsdp = quiet(max_epochs=1, devices=8, strategy="fsdp").plan(mlp_task(), BATCH)
    assert fsdp.shardings["params/layer_1/kernel"] == "data, None"
    assert fsdp.memory.argument < jit.memory.argument
    assert any(one.kind == "all-gather" for one in fsdp.collectives)


def test_a_plan_is_printed_for_people_and_as_json():
    plan = quiet(max_epochs=1, devices=8, strategy="fsdp", steps_per_call=4).plan(mlp_task(), BATCH)
    text = str(plan)
    for part in (
        "8 x cpu (data=8), 4 step(s) a call",
        "arguments",
        "temporaries",
        "all-gather",
        "layer_1/kernel  data",
    ):
        assert part in text
    told = json.loads(plan.to_json())
    assert told["devices"] == 8
    assert told["memory"]["peak"] == plan.memory.peak
    assert told["collectives"][0]["count"] == plan.collectives[0].count


def test_a_program_too_large_is_refused_with_the_numbers_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda device: 1000)
    data = lj.ArrayLoader(digit_like_data(32), 16)
    with pytest.raises(lj.ConfigurationError, match=r"does not fit: it needs .* GiB.*check_memory=False"):
        quiet(max_epochs=1).fit(mlp_task(), data)
    with pytest.raises(lj.ConfigurationError, match=r"does not fit its devices(.|\n)*largest arrays"):
        quiet(max_epochs=1).plan(mlp_task(), BATCH).check()
    assert int(quiet(max_epochs=1, check_memory=False).fit(mlp_task(), data).state.step) == 2


def test_a_program_the_compiler_gives_up_on_says_what_to_do():
    class Lowered:
        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM (17.00G) of (15.75G).")

    compiler = Compiler({})
    with pytest.raises(lj.ConfigurationError, match=r"too large for the devices.*17.00G.*lj.shard_batch"):
        compiler.submit(Lowered()).result()
    compiler.close()


def test_without_the_compiler_a_topology_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lightjax.topology.find_spec", lambda name: None)
    with pytest.raises(lj.ConfigurationError, match=r"pip install 'lightjax\[tpu-plan\]'"):
        quiet(max_epochs=1).plan(mlp_task(), BATCH, topology="v5e:2x2")


def test_collectives_in_a_loop_count_for_each_of_its_rounds():
    mesh = jax.make_mesh((8,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices())
    split = jax.NamedSharding(mesh, jax.P("data"))

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: x + jnp.sum(x), x)

    text = jax.jit(loop, in_shardings=split).lower(jax.ShapeDtypeStruct((16,), jnp.float32)).compile().as_text()
    assert collectives(text) == (Collective("all-reduce", 5, 20),)


def test_the_largest_arrays_are_named_as_the_users_functions_are():
    def product(x):
        return jnp.tanh(x[:, None] * x[None] + 1.0) @ x

    text = jax.jit(product).lower(jax.ShapeDtypeStruct((256,), jnp.float32)).compile().as_text()
    largest = largest_temporaries(text)[0]
    assert (largest.bytes, largest.shape) == (4 * 256 * 256, "f32[256,256]")
    assert "jit(product)" in largest.name


def test_the_command_line_prints_a_plan(tmp_path, capsys):
    script = tmp_path / "train.py"
    script.write_text(
        "import numpy as np, optax, jax.numpy as jnp, lightjax as lj\n"
        "def init(key, batch):\n"
        "    return lj.TrainState.create(params={'w': jnp.zeros(batch['x'].shape[1])}, optimizer=optax.sgd(0.1))\n"
        "def loss_fn(state, batch):\n"
        "    return ((batch['x'] @ state.params['w']) ** 2).mean(), {}\n"
        "task = lj.Task.from_loss(init, loss_fn)\n"
        "batch = {'x': np.zeros((8, 3), np.float32)}\n"
    )
    assert main(["plan", f"{script}:task", "--batch-size", "32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flops"] == 2 * 2 * 32 * 3
    assert main(["plan", f"{script}:tsk"]) == 1
    assert "has no 'tsk'; it has batch, init" in capsys.readouterr().err


@pytest.mark.parametrize("held", [True, False])
def test_a_plan_names_activations_that_hold_the_whole_batch_on_each_device(held):
    def init(key, batch):
        return lj.TrainState.create(params={"w": jnp.zeros((16, 64))}, optimizer=optax.sgd(0.1))

    def loss_fn(state, batch):
        x = batch["x"] @ state.params["w"]
        x = lj.shard_batch(x) if held else jax.lax.with_sharding_constraint(x, jax.P())
        return (jnp.sin(x) ** 2).mean(), {}

    plan = quiet(max_epochs=1, devices=8).plan(
        lj.Task.from_loss(init, loss_fn), {"x": jax.ShapeDtypeStruct((512, 16), jnp.float32)}
    )
    assert ("f32[512,64]" in plan.unsplit) is not held
    assert ("x = lj.shard_batch(x)" in str(plan)) is not held
