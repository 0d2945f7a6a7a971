"""A short run with everything that has a memory, for processes that are killed."""

import csv
import hashlib
from pathlib import Path

import lightjax as lj
from lightjax.checkpoint import checkpointer
from tests.models import bits, digit_like_data, mlp_task

# Which of the runs scale their loss as float16 needs it, and which keep an average of the parameters.
HALF = ("list", "grain", "torchdata")
AVERAGED = ("list", "device", "torch")


class Telling(lj.Callback):
    """Remembers how often it looked, and says what the run is about to do."""

    every_n_steps = 12

    def __init__(self, tell):
        self.tell = tell
        self.looks = 0

    def on_train_batch_end(self, run):
        self.looks += 1
        run.log({"looks": self.looks})
        self.tell("steps")

    def on_validation_start(self, run):
        self.tell("evaluation")

    def on_save_checkpoint(self, run):
        self.tell("save")

    def on_train_epoch_end(self, run):
        self.tell("end of an epoch")

    def state_dict(self):
        return {"looks": self.looks}

    def load_state_dict(self, state):
        self.looks = state["looks"]


def task_of(kind):
    if kind != "ported":
        return mlp_task()
    import torch
    from torch import nn

    from lightjax_torch import port_task

    class Classifier(nn.Module):
        """Everything of a ported module that has a memory: statistics, dropout, a hidden state, a scheduler."""

        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 10))
            self.before = None

        def loss(self, batch):
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"].long())

        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            if self.before is not None:
                loss = loss + 0.1 * (loss - self.before).square()
            self.before = loss.detach()
            return loss * min(1.0, (self.global_step + 1) / 9)

        def validation_step(self, batch, batch_idx):
            self.log("loss", self.loss(batch))

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9), "interval": "step"}]

    torch.manual_seed(0)
    return port_task(Classifier())


def loader_of(kind):
    arrays = digit_like_data(246)
    if kind in ("array", "device", "list", "ported"):
        loader = lj.ArrayLoader(arrays, 16, shuffle=True, seed=1, on_device=kind == "device")
        return list(loader.epoch(0)) if kind == "list" else loader
    rows = [{"x": x, "y": y} for x, y in zip(arrays["x"], arrays["y"], strict=True)]
    if kind == "grain":
        import grain

        return grain.MapDataset.source(rows).shuffle(seed=1).batch(16)
    import torch

    settings = dict(batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    if kind == "torch":
        return torch.utils.data.DataLoader(rows, **settings)
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(rows, **settings)


def reported(file):
    """The rows of a CSV file without gauges of the machine, such as rates: no two runs agree on those."""
    rows = csv.DictReader(file.read_text().splitlines())

    def is_ours(name):
        return name in ("step", "epoch", "looks") or name.startswith(("train/", "val/"))

    return [{name: cell for name, cell in row.items() if cell and is_ours(name)} for row in rows]


def train(directory: Path, steps_per_call: int, kind: str, tell=lambda doing: None) -> dict:
    """Trains, resuming whatever is there, and returns what the run came to.

    Epochs have 16 batches, the last one short; looks, saves and evaluations come at different steps of them, with up to
    8 steps between.
    """
    checkpointer.WRITE_EVERY_S = 0.02  # or a short run would have one checkpoint
    trainer = lj.Trainer(
        max_epochs=6,
        default_root_dir=directory,
        # Who is killed while compiling would compile again; the undisturbed run has done it already.
        compilation_cache=directory.parent / "compiled",
        resume="auto",
        steps_per_call=steps_per_call,
        callbacks=[
            lj.ModelCheckpoint("val/loss", every_n_train_steps=10),
            lj.EarlyStopping("val/loss", patience=50),
            Telling(tell),
            *([lj.EMA(0.9)] if kind in AVERAGED else []),
        ],
        precision="16-mixed" if kind in HALF else "32-true",
        logger=lj.CSVLogger(),
        log_every_n_steps=3,
        val_check_interval=9,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    result = trainer.fit(task_of(kind), loader_of(kind), lj.ArrayLoader(digit_like_data(37, seed=2), 8))
    best, last = result.checkpoint.best, result.checkpoint.last
    return {
        "state": hashlib.sha256(b"".join(bits(result.state))).hexdigest(),
        "history": result.history,
        "csv": reported(result.directory / "metrics.csv"),
        "stopped_by": result.stopped_by,
        "best": [best.step, hashlib.sha256(b"".join(bits(best.restore()))).hexdigest()],
        "last": last.step,
    }
