"""What a chip has to hold and to send for models of Hugging Face and timm, ported and compiled for a TPU pod.

Nothing runs and nothing is downloaded: the modules are made on torch's meta device, which holds shapes only, and the
TPU compiler says what it would need (`pip install 'lightjax[torch,tpu-plan]' transformers timm`). Compiled with the
least effort for speed unless `JAX_EXEC_TIME_OPTIMIZATION_EFFORT` says more.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")

import numpy as np
import torch
from report import machine, machine_line, table, write_json

import lightjax as lj
from lightjax.topology import topology_devices
from lightjax_torch import LightningModule, from_torch


class Decoder(LightningModule):
    """A Llama of 1.1 billion parameters (TinyLlama's sizes), trained to predict the next token."""

    title, strategy, rows, shape = "Llama, 1.1 billion", "fsdp", 2, (1024,)

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=2048,
                intermediate_size=5632,
                num_hidden_layers=22,
                num_attention_heads=32,
                num_key_value_heads=4,
                use_cache=False,
                attn_implementation="sdpa",
            )
        )
        self.model.gradient_checkpointing_enable()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Returns the mean loss of the next tokens, int32 [rows, tokens]."""
        logits = self.model(input_ids=batch).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten().long())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-4)

    @classmethod
    def batch(cls, rows: int) -> Any:
        """Returns a batch of shapes."""
        return np.zeros((rows, *cls.shape), np.int32)


class Vision(LightningModule):
    """timm's ViT-B/16 at 224x224, 1000 classes."""

    title, strategy, rows, shape = "timm ViT-B/16", "jit", 8, (3, 224, 224)

    def __init__(self) -> None:
        super().__init__()
        import timm

        self.model = timm.create_model("vit_base_patch16_224", pretrained=False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Returns the mean loss of float32 [rows, 3, 224, 224] and int32 [rows]."""
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.model(images), labels.long())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    @classmethod
    def batch(cls, rows: int) -> Any:
        """Returns a batch of shapes."""
        return np.zeros((rows, *cls.shape), np.float32), np.zeros(rows, np.int32)


MODELS = {"llama": Decoder, "vit": Vision}


def measure(model: type[Decoder] | type[Vision], topology: str) -> dict[str, Any]:
    """Ports and compiles one model, and reads what it needs."""
    chips = len(topology_devices(topology))
    begun_s = time.perf_counter()
    with torch.device("meta"):
        module = model()
    task = from_torch(module, backend="jax")
    trainer = lj.Trainer(strategy=model.strategy, precision="bf16-mixed")
    plan = trainer.plan(task, model.batch(model.rows * chips), topology=topology)
    return {
        "model": model.title,
        "topology": topology,
        "chips": chips,
        "strategy": model.strategy,
        "parameters": sum(one.numel() for one in module.parameters()),
        "rows": model.rows,
        "arguments": plan.memory.argument,
        "temporaries": plan.memory.temporary,
        "peak": plan.memory.peak,
        "has": plan.memory.limit,
        "fits": plan.fits,
        "seconds": time.perf_counter() - begun_s,
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the numbers as a Markdown table."""

    def gigabytes(number: float | None) -> str:
        return "-" if number is None else f"{number / 1e9:.3g}"

    head = ["model", "chips", "strategy", "parameters", "rows a chip", "state and batch, GB", "temporaries, GB"]
    head += ["peak, GB", "has, GB", "fits", "s to plan", "host, GB"]
    return table(
        head,
        [
            [
                row["model"],
                f"{row['chips']} ({row['topology']})",
                row["strategy"],
                f"{row['parameters'] / 1e6:.0f} M",
                str(row["rows"]),
                *(gigabytes(row[name]) for name in ("arguments", "temporaries", "peak", "has")),
                "yes" if row["fits"] else "no",
                f"{row['seconds']:.0f}",
                gigabytes(row["host"]),
            ]
            for row in rows
        ],
    )


def main() -> None:
    """Measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--topology", default="v5e:16x16", help="the pod (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print(machine_line(machine()))
    rows = [measure(MODELS[name], arguments.topology) for name in arguments.models]
    print(report(rows))
    if arguments.json:
        write_json(arguments.json, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
