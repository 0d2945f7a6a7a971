"""The errors lightjax raises about what the user wrote.

Each message has three parts: what happened (with the leaf's path, shapes or names), why, and what to write instead.
"""


class LightjaxError(Exception):
    """Base of every error about the user's program."""


class ConfigurationError(LightjaxError, ValueError):
    """The trainer was asked for something it cannot do; one message lists every conflict."""


class StepError(LightjaxError, TypeError):
    """A step function broke its contract `(state, batch) -> (state, metrics)`."""


class MetricError(LightjaxError, TypeError):
    """A reported value is neither a number nor a metric, or a monitored name was never reported."""


class DataError(LightjaxError, ValueError):
    """A loader gave nothing, gave something that is no batch, or changed the shape of its batches."""


class RecompileError(LightjaxError, RuntimeError):
    """A step would have to be compiled again, and the trainer was asked to be strict."""


class CheckpointError(LightjaxError, RuntimeError):
    """A checkpoint could not be written, read, or does not fit the state it is asked for."""


class NonfiniteError(LightjaxError, FloatingPointError):
    """A loss or gradients were not finite, and the run was asked to end then."""
