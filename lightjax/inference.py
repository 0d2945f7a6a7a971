"""Inference: one call of `validate`, `test` or `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import jax

from lightjax import distributed
from lightjax.callbacks.callback import Stage, call, call_to_the_end
from lightjax.checkpoint import Checkpoints
from lightjax.data.stage import Loaders
from lightjax.engine.engine import Engine
from lightjax.evaluation import Evaluation, trace
from lightjax.history import History
from lightjax.loggers import LoggerCollection, in_background
from lightjax.origin import state_to_evaluate
from lightjax.prediction import predict
from lightjax.progress import Progress, make_progress
from lightjax.run import Run
from lightjax.task import TaskLike

if TYPE_CHECKING:
    from lightjax.trainer import Trainer


def metrics_of(
    trainer: Trainer, stage: Literal["val", "test"], task: TaskLike, data: Any, datamodule: Any, state: Any
) -> dict[str, Any]:
    """Evaluates a state; arguments as for `Trainer.validate`.

    Returns:
      Python floats by name; waits for the device.
    """
    engine = trainer.engine_for(task)
    loaders = engine.stage_data(stage, data, datamodule, trainer.limits[stage])
    state = _found_state(trainer, engine, state, loaders)
    trace(engine, state, loaders)
    with _running(trainer, engine, state, "validate" if stage == "val" else "test") as (run, progress):
        Evaluation(stage, engine, loaders, run.callbacks, progress).run(run)
        metrics = dict(run.metrics)
        progress.end_evaluation(metrics)
    return metrics


def outputs_of(trainer: Trainer, task: TaskLike, data: Any, datamodule: Any, state: Any, *, keep: bool) -> Any:
    """Predicts with a state; arguments as for `Trainer.predict`.

    Returns:
      The outputs of all batches joined, a dict of them for a dict of loaders; None if they are not kept.
    """
    engine = trainer.engine_for(task)
    loaders = engine.stage_data("predict", data, datamodule, trainer.limits["predict"])
    state = _found_state(trainer, engine, state, loaders)
    with _running(trainer, engine, state, "predict") as (run, progress):
        call(run.callbacks, "on_predict_start", run)
        call(run.callbacks, "on_predict_epoch_start", run)
        outputs = {
            name: predict(run, engine, source, run.callbacks, progress, name, keep=keep)
            for name, source in loaders.items()
        }
        call(run.callbacks, "on_predict_epoch_end", run)
        call(run.callbacks, "on_predict_end", run)
    return outputs.get("", outputs) if keep else None


def _found_state(trainer: Trainer, engine: Engine, given: Any, loaders: Loaders) -> Any:
    last, key = trainer.result, jax.random.key(trainer.seed)
    trained, checkpoints = (None, Checkpoints()) if last is None else (last.state, last.checkpoint)
    return state_to_evaluate(engine, key, next(iter(loaders.values())), given, trained, checkpoints)


@contextmanager
def _running(trainer: Trainer, engine: Engine, state: Any, stage: Stage) -> Iterator[tuple[Run, Progress]]:
    """Makes the run of an evaluation or prediction and calls the hooks around it.

    It reports to the loggers of the last training.
    """
    main = distributed.is_main()
    logger = LoggerCollection(map(in_background, trainer.loggers if trainer.directory and main else ()))
    history = History(logger, of_training=False)
    run = Run(trainer, engine, state, history, logger, None, trainer.directory, stage)
    with ExitStack() as closing:
        closing.callback(engine.close)
        closing.callback(logger.finish)
        progress = make_progress(trainer.enable_progress_bar and main)
        closing.callback(progress.close)
        try:
            call(run.callbacks, "setup", run, stage)
            yield run, progress
            run.history.settle()
        except BaseException as error:
            call_to_the_end(run.callbacks, run, error)
            raise
        call(run.callbacks, "teardown", run, stage)
