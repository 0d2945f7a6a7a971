"""Topologies: the chips of a TPU pod that is not there, for compiling."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from lightjax.errors import ConfigurationError


def topology_devices(topology: str) -> list[Any]:
    """Returns the chips of a TPU topology, to compile for.

    The compiler comes with the package `libtpu`, which needs no TPU.

    Args:
      topology: kind and shape, such as "v5e:16x16" or "v5p:4x4x4".

    Raises:
      ConfigurationError: `libtpu` is not installed, or does not know the topology.
    """
    if find_spec("libtpu") is None:
        raise ConfigurationError(
            f"The plan for {topology} needs the TPU compiler, which is in no package installed here; install it (200 "
            "MB): pip install 'lightjax[tpu-plan]'."
        )
    # Without a TPU there is no metadata server to ask what machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    # Nor a chip that two processes could fight over: without this, a second plan at the same time finds a locked file.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    # What it would ask that server, and complain about without an answer. Only while it starts: a TPU that is there
    # has its own.
    answers = {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    answers = {name: text for name, text in answers.items() if name not in os.environ}
    os.environ.update(answers)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        raise ConfigurationError(
            f"The TPU compiler knows no topology {topology!r} ({str(error).splitlines()[0]}); write a kind of chip and "
            "the shape of the pod, such as 'v5e:16x16', 'v5p:4x4x4' or 'v6e:8x8'."
        ) from error
    finally:
        for name in answers:
            del os.environ[name]
