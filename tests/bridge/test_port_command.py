"""`lightjax port`: the proof for a module of the user's."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lightjax.cli import main  # noqa: E402
from lightjax_torch import LightningModule  # noqa: E402
from lightjax_torch.port_check import check  # noqa: E402
from lightjax_torch.port_report import Difference, PortReport  # noqa: E402

SCRIPT = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Tanh())
        self.head = torch.nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        x, y = batch
        return ((self.head(self.body(x)) - y) ** 2).mean()
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

class Branching(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * round(float(loss))

class Unknown(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * torch.special.airy_ai(batch[1]).mean()

class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * (1 if torch.compiler.is_compiling() else 2)
    @staticmethod
    def backward(ctx, g):
        return g

class Different(Net):
    def training_step(self, batch, batch_idx):
        return Twice.apply(super().training_step(batch, batch_idx))

class Dropping(Net):
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.dropout(super().training_step(batch, batch_idx) + batch[0]).mean()

class Sampling(Net):
    automatic_optimization = False
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step((batch[0] + torch.randn(3), batch[1]), batch_idx))
        optimizer.step()

class Needy(Net):
    def __init__(self, width):
        super().__init__()

class Own(Net):
    def train_dataloader(self):
        return [batch_of_its_own()]

def batch_of_its_own():
    torch.manual_seed(0)
    return torch.randn(8, 3), torch.randn(8, 1)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("port") / "user_models.py"
    path.write_text(SCRIPT)
    return path


def run(script, name, *more):
    return main(["port", f"{script}:{name}", "--batch", "batch_of_its_own", *more])


def test_a_module_that_agrees_passes_with_its_numbers(script, capsys):
    assert run(script, "Net", "--check", "--json", "--steps", "3") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"]
    assert len(found["losses"]) == 3
    assert found["losses"][0] == pytest.approx([found["losses"][0][0]] * 2, rel=1e-5)
    assert found["losses"][2][0] < found["losses"][0][0]
    assert found["gradient"]["tensors"] == found["weight"]["tensors"] == 6
    assert max(found[kind]["share"] for kind in ("gradient", "weight", "buffer")) < 1e-4
    # The bias before BatchNorm has a gradient of rounding only, and Adam makes whole steps of it.
    assert 0 < found["noise"] <= 4
    assert found["buffer"]["tensors"] == 3
    assert min(found[name] for name in ("torch_s", "jax_s", "capture_s", "compile_s")) > 0
    assert found["memory"]["peak"] > 0


def test_float64_leaves_no_room_for_rounding(script, capsys):
    assert run(script, "Net", "--check", "--json", "--steps", "2", "--float64") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tolerance"] == 1e-7
    assert max(found[kind]["share"] for kind in ("gradient", "buffer")) < 1e-12
    assert found["weight"]["share"] < 1e-7  # Adam's count of steps is a float32 in torch


def test_a_module_that_differs_fails_and_names_the_worst(script, capsys):
    assert run(script, "Different", "--check", "--steps", "2") == 1
    out = capsys.readouterr().out
    assert "DIFFERS: the tolerance is 0.0001" in out
    assert "loss, step 1" in out


def test_what_cannot_be_ported_is_told_with_its_line(script, capsys):
    assert run(script, "Branching", "--check") == 1
    assert "user_models.py:18" in capsys.readouterr().out
    assert run(script, "Unknown", "--json") == 1
    (lines,) = json.loads(capsys.readouterr().out)["unsupported"].values()
    assert "user_models.py:22" in lines[0]


@pytest.mark.parametrize("name", ["Dropping", "Sampling"])
def test_a_random_step_is_compared_operation_by_operation(script, name, capsys):
    assert run(script, name, "--check", "--steps", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["random"]
    assert found["agrees"]
    assert found["operations"] > 10


def test_the_batch_comes_from_the_module_where_none_is_named(script, capsys):
    assert main(["port", f"{script}:Own"]) == 0
    assert capsys.readouterr().out.startswith("Own is ported\n")


def test_what_is_not_there_is_told(script, capsys):
    assert run(script, "Nett") == 1
    assert "has no 'Nett'; it has" in capsys.readouterr().err
    assert main(["port", "Net"]) == 1
    assert "names no class" in capsys.readouterr().err
    assert run(script, "Needy") == 1
    assert "def make(): return Needy(...)" in capsys.readouterr().err
    assert main(["port", f"{script}:Net"]) == 1
    assert "has no 'batch'" in capsys.readouterr().err
    assert main(["port", "no.such_module:Net"]) == 1
    assert "cannot be imported" in capsys.readouterr().err


def test_a_report_fails_where_a_number_is_nan_or_a_pod_is_too_small():
    assert PortReport("Net", 1e-4, gradient=Difference("w", float("nan"), 1)).exit_code == 1
    assert PortReport("Net", 1e-4, losses=((1.0, float("nan")),)).exit_code == 1
    assert PortReport("Net", 1e-4, topology="v5e:16x16", fits=False).exit_code == 1
    assert PortReport("Net", 1e-4).exit_code == 0


@pytest.mark.libtpu
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed: pip install 'lightjax[tpu-plan]'",
)
def test_a_pod_that_is_not_there_is_compiled_for(script):
    # In a process of its own, as from a shell: the compiler takes over the process's timer of profiles.
    line = [
        "port",
        f"{script}:Net",
        "--batch",
        "batch_of_its_own",
        "--topology",
        "v5e:2x2",
        "--strategy",
        "fsdp",
        "--json",
    ]
    program = f"from lightjax.cli import main; raise SystemExit(main({line!r}))"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["fits"] is True
    assert found["mesh"] == {"data": 4}
    assert 0 < found["memory"]["peak"] < found["memory"]["limit"]


class Partly(LightningModule):
    """Computes a part in float32 whatever its weights are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        waves = torch.arange(4, dtype=torch.float32).sin()
        return ((self.layer(batch) + waves).float() ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def test_float64_is_float64_throughout():
    torch.manual_seed(0)
    report = check(Partly(), torch.randn(3, 4), steps=3, float64=True)
    assert report.agrees
    assert report.weight is not None
    assert report.weight.share < 1e-12
    assert torch.get_default_dtype() is torch.float32
    assert not jax.config.jax_enable_x64


def test_a_difference_in_float32_is_told_what_to_do():
    report = PortReport("Net", 1e-4, steps=3, gradient=Difference("w", 2e-4, 1))
    assert "--float64 tells rounding" in str(report)
    assert "--float64" not in str(PortReport("Net", 1e-7, steps=3, gradient=Difference("w", 2e-4, 1)))
