"""A small training program that notes when its first step has ended; started by `startup.py`, never by hand.

Imports happen inside the functions: they are a large part of what is timed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from models import MODELS

STEPS = 8  # of the program; only the first one is timed
_noted: list[float] = []


def note() -> None:
    """Notes the time, the first time it is called."""
    if not _noted:
        _noted.append(time.clock_gettime(time.CLOCK_MONOTONIC))


def handwritten(name: str) -> None:
    import jax
    from contestants.handwritten import make_step

    model = MODELS[name]
    (inputs, labels), _ = model.data(STEPS)
    step, optimizer = make_step(model)
    params = jax.device_put(model.initial())
    opt_state = optimizer.init(params)
    for start in range(0, len(inputs), model.batch):
        batch = slice(start, start + model.batch)
        params, opt_state, _ = step(params, opt_state, inputs[batch], labels[batch])
        jax.block_until_ready(params)
        note()


def lightjax(name: str) -> None:
    import jax
    from contestants.lightjax_trainer import make_loader, make_task

    import lightjax as lj

    class FirstStep(lj.Callback):
        def on_train_batch_end(self, run: lj.Run) -> None:
            jax.block_until_ready(run.state)
            note()

    model = MODELS[name]
    data, _ = model.data(STEPS)
    trainer = lj.Trainer(max_epochs=1, callbacks=[FirstStep()], default_root_dir=Path.cwd())
    trainer.fit(make_task(model), make_loader(data, model.batch))


def lightning(name: str) -> None:
    import lightning.pytorch as pl
    from contestants.lightning_trainer import Module
    from torch_models import Batches, make_module

    class FirstStep(pl.Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            note()

    model = MODELS[name]
    data, _ = model.data(STEPS)
    trainer = pl.Trainer(max_epochs=1, callbacks=[FirstStep()], default_root_dir=Path.cwd(), accelerator="cpu")
    trainer.fit(Module(make_module(name, model.initial())), Batches(data, model.batch))


def keras(name: str) -> None:
    import keras
    from contestants.keras_fit import make_model

    class FirstStep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            float(logs["loss"])
            note()

    model = MODELS[name]
    (inputs, labels), _ = model.data(STEPS)
    built, _ = make_model(model, inputs, 1)
    built.fit(inputs, labels, batch_size=model.batch, shuffle=False, callbacks=[FirstStep()])


PROGRAMS = {"handwritten": handwritten, "lightjax": lightjax, "lightning": lightning, "keras": keras}

if __name__ == "__main__":
    program, model_name, answer = sys.argv[1:]
    PROGRAMS[program](model_name)
    Path(answer).write_text(repr(_noted[0]))
