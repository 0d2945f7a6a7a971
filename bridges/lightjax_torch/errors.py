"""What goes wrong when a torch program is ported."""

from __future__ import annotations

from lightjax.errors import LightjaxError

WAY_OUT = 'run the module in torch itself, from_torch(module, backend="eager")'


class CaptureError(LightjaxError, RuntimeError):
    """A torch program cannot become one compiled program; the message names the user's line and the way out."""


class UnsupportedOperatorError(CaptureError, NotImplementedError):
    """Operations without a rule for JAX; the message lists them all, with the user's lines and the way out."""
