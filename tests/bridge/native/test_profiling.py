"""Profilers of torch tasks: the same names, through torch.profiler."""

import gzip
import json
import time

import pytest

torch = pytest.importorskip("torch")

import lightjax as lj  # noqa: E402
from lightjax.profiler import JaxProfiler, SimpleProfiler, verdict  # noqa: E402
from lightjax_torch import LightningModule, from_torch  # noqa: E402
from lightjax_torch.profiling import TorchTracer  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """Small operations in many threads of a busy machine take a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Square(LightningModule):
    """Multiplies square matrices, `work` times a step."""

    def __init__(self, width=48, work=1):
        super().__init__()
        self.work = work
        self.weight = torch.nn.Parameter(torch.eye(width))

    def training_step(self, batch, batch_idx):
        found = batch
        for _ in range(self.work):
            found = found @ self.weight
        loss = found.square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def batches(count, width=48, wait_s=0.0):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        time.sleep(wait_s)
        yield torch.randn(width, width, generator=generator)


def train(module, data, **arguments):
    arguments = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | arguments
    return lj.Trainer(max_epochs=1, **arguments).fit(from_torch(module, device="cpu"), data)


def test_a_torch_program_that_computes_is_told_so_and_what_helps_torch():
    profiler = SimpleProfiler()
    train(Square(256, work=20), list(batches(8, 256)), profiler=profiler)
    found = verdict(profiler.times(), profiler.tracer.advice)
    assert found.bound == "device"
    assert found.text.startswith("compute-bound: ")
    assert "backend='inductor' or 'jax'" in found.text
    assert "steps_per_call" not in found.text


def test_a_torch_program_that_waits_for_data_is_told_so():
    profiler = SimpleProfiler()
    train(Square(), list(batches(1)), profiler=profiler)  # what torch does once
    train(Square(), lambda: batches(20, wait_s=0.02), profiler=profiler)
    found = verdict(profiler.times(), profiler.tracer.advice)
    assert found.bound == "data"
    assert "raise num_workers" in found.text


def test_what_helps_depends_on_the_backend():
    device = torch.device("cpu")
    assert "'inductor' or 'jax'" in TorchTracer(device).advice["dispatch"]
    assert "'inductor'" not in TorchTracer(device, "inductor").advice["dispatch"]


def test_a_trace_of_torch_names_its_heaviest_operation(tmp_path, capsys):
    profiler = JaxProfiler(first_step=4, steps=3, operations=5)
    train(Square(256, work=4), list(batches(10, 256)), profiler=profiler, logger="csv", default_root_dir=tmp_path)
    out = capsys.readouterr().out
    (trace,) = tmp_path.glob("version_0/*.pt.trace.json.gz")
    lines = out[out.index(f"Trace of steps 4 to 7 (trace: {trace})") :].splitlines()
    assert lines[1].startswith("CPU: ")
    assert lines[2].split()[-2:] == ["33x", "aten::mm"]  # 3 steps: 4 products, 4 gradients of weights, 3 of inputs
    assert "longest gaps" in out
    with gzip.open(trace) as file:
        names = [event.get("name") for event in json.load(file)["traceEvents"]]
    assert [name for name in names if name and name.startswith("ProfilerStep#")][:3] == [
        f"ProfilerStep#{step}" for step in (4, 5, 6)
    ]


def test_memory_lists_the_tensors_of_torch(tmp_path, capsys):
    module = Square(77)
    train(module, list(batches(3, 77)), profiler="memory", logger="csv", default_root_dir=tmp_path)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "float32 77x77" in line)
    assert int(line.split()[2]) >= 5  # three batches, the weight and its gradient
    assert not (tmp_path / "version_0" / "memory.prof").exists()


@pytest.mark.parametrize("name", [None, "simple", "advanced", "jax", "memory"])
def test_no_profiler_changes_what_torch_trains(name):
    expected, found = Square(8), Square(8)
    train(expected, list(batches(5, 8)))
    train(found, list(batches(5, 8)), profiler=JaxProfiler(first_step=1, steps=2) if name == "jax" else name)
    assert torch.equal(expected.weight, found.weight)


def test_the_table_of_a_residual_network_is_a_tree_with_known_counts(capsys):
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.norm = torch.nn.BatchNorm2d(4)

        def forward(self, x):
            return x + torch.relu(self.norm(self.conv(x)))

    class Residual(LightningModule):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(1, 4, 3, padding=1)
            self.blocks = torch.nn.Sequential(Block(), Block())
            self.head = torch.nn.Linear(4, 2)
            self.stem.requires_grad_(False)

        def training_step(self, batch, batch_idx):
            return self.head(self.blocks(self.stem(batch)).mean((2, 3))).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    train(Residual(), [torch.zeros(2, 1, 8, 8)])
    lines = {tuple(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert ("stem", "40", "160", "B") in lines
    assert ("weight", "4x1x3x3", "float32", "36", "144", "B", "frozen") in lines
    assert ("0", "152", "608", "B") not in lines  # with the buffers of its norm, which are no parameters
    assert ("0", "152", "648", "B") in lines
    assert ("Parameters", "354", "1.42", "kB") in lines  # 40 + 2 x (4 x 4 x 9 + 8) + 10
    assert ("Frozen", "40", "160", "B") in lines


def test_the_first_screen_says_what_torch_runs_on(capsys):
    train(Square(8), list(batches(2, 8)), precision="bf16-mixed")
    out = capsys.readouterr().out
    assert f"devices       1 x cpu, torch {torch.__version__}, backend 'eager'" in out
    assert "precision     parameters float32, compute bfloat16 (bf16-mixed)" in out
