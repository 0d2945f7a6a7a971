"""A module whose steps a backend of torch.compile compiles trains as it does eagerly."""

from typing import Any

import pytest

import lightjax as lj
from lightjax.errors import ConfigurationError

torch = pytest.importorskip("torch")

from lightjax_torch import LightningModule, from_torch  # noqa: E402

BATCHES = [torch.ones(4, 3) * (1 + i) for i in range(4)]


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch).relu().square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(backend: Any) -> Any:
    trainer = lj.Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    return trainer.fit(from_torch(Model(), backend=backend, device="cpu"), BATCHES, BATCHES)


# Dynamo looks at the gradient of the loss where self.log interrupts the graph; torch warns of looks like that.
@pytest.mark.filterwarnings("default:The .grad attribute of a Tensor:UserWarning")
def test_a_backend_of_ones_own_compiles_both_steps_once_and_changes_nothing():
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    eager, result = fit("eager"), fit(backend)
    assert result.metrics == eager.metrics
    assert (result.state.params["layer.weight"] == eager.state.params["layer.weight"]).all()
    operations = [node.target for graph in compiled for node in graph.graph.nodes if node.op != "placeholder"]
    assert sum(str(one).count("linear") for one in operations) == 2


def test_a_missing_compiler_is_found_before_anything_runs(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(ConfigurationError, match=r"needs a C\+\+ compiler .*no-such-compiler.*install one"):
        from_torch(Model(), backend="inductor", device="cpu")
