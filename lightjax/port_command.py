"""The command `lightjax port package.module:LitModel`: whether a torch module trains in JAX as it does in torch."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any


def add_port(commands: Any) -> None:
    """Adds the command to a parser's commands; lightjax_torch, which does the work, is imported when it is called."""
    text = "port a torch module to JAX, train it for some steps in both, and compare"
    port = commands.add_parser("port", help=text, description=text)
    port.add_argument("module", metavar="MODULE:CLASS", help="a Python module, or a file, and what makes the model")
    port.add_argument(
        "--batch",
        default="batch",
        help="the name in MODULE of a batch, a data loader or a data module, or of what makes one: %(default)s; where "
        "there is none, the first batch of the model's own train_dataloader()",
    )
    port.add_argument("--check", action="store_true", help="train in both; the exit code is 1 where they differ")
    port.add_argument("--steps", type=int, default=5, help="training steps to compare: %(default)s")
    port.add_argument(
        "--tolerance", type=float, help="share of a tensor's largest element: 1e-4, with --float64 1e-7, when left out"
    )
    port.add_argument("--float64", action="store_true", help="compare in float64, where rounding hides nothing")
    port.add_argument("--topology", help="a TPU pod, such as v5e:16x16: does the step fit it?")
    port.add_argument("--strategy", default="auto", help="auto, jit, fsdp or pmap, on that pod: %(default)s")
    port.add_argument("--json", action="store_true", help="print JSON instead of a table")
    port.set_defaults(run=run_port)


def run_port(arguments: argparse.Namespace) -> int:
    """Prints the report; the exit code is 1 if the module cannot be ported, differs from torch, or does not fit."""
    if arguments.topology is not None:
        # What is compiled for is not here: no accelerator needs to be started for it.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    return importlib.import_module("lightjax_torch.port_check").run(arguments)
