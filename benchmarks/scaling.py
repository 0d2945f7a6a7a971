"""What a chip has to hold and to send as the machine grows: a GPT of 1.3 billion parameters compiled for TPU pods.

Nothing runs: the TPU compiler says what it would need (`pip install lightjax[tpu-plan]`). Four sequences a chip, so
that the work of a chip stays the same. Compiled with the least effort for speed unless
`JAX_EXEC_TIME_OPTIMIZATION_EFFORT` says more: a sixth of the time, within a tenth of the memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from gpt_pod import SEQUENCES_A_CHIP, fsdp_tensor, gpt_batch, gpt_task
from report import machine, machine_line, table, write_json

import lightjax as lj
from lightjax.topology import topology_devices

TOPOLOGIES = ("v5e:2x4", "v5e:8x8", "v5e:16x16", "v5p:8x8x16")
STRATEGIES = {"jit": "jit", "fsdp": "fsdp", "fsdp x tensor 4": fsdp_tensor}
FIGURES = {
    "arguments": ("GB a chip, state and batch", 1e9, "log"),
    "peak": ("GB a chip, peak", 1e9, "linear"),
    "sent": ("GB a chip sends in a step", 1e9, "linear"),
    "FLOP": ("TFLOP of a chip in a step", 1e12, "linear"),
}


def measure(topology: str, name: str) -> dict[str, Any]:
    """Compiles one program and reads what it needs."""
    trainer = lj.Trainer(strategy=STRATEGIES[name])
    chips = len(topology_devices(topology))
    plan = trainer.plan(gpt_task(), gpt_batch(SEQUENCES_A_CHIP * chips), topology=topology)
    memory, sent = plan.memory, {one.kind: one.bytes for one in plan.collectives}
    return {
        "topology": topology,
        "chips": plan.devices,
        "strategy": name,
        "fits": plan.fits,
        "has": memory.limit,
        "peak": memory.peak,
        "arguments": memory.argument,
        "temporaries": memory.temporary,
        "messages": {one.kind: one.count for one in plan.collectives},
        "sent by kind": sent,
        "sent": sum(sent.values()) if plan.collectives else None,
        "FLOP": plan.flops / plan.devices,
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the numbers as a Markdown table."""

    def gigabytes(number: float | None) -> str:
        return "-" if number is None else f"{number / 1e9:.3g}"

    head = ["chips", "strategy", "state and batch, GB", "temporaries, GB", "peak, GB", "has, GB", "fits"]
    head += ["messages", "sent, GB", "TFLOP a chip"]
    return table(
        head,
        [
            [
                f"{row['chips']} ({row['topology']})",
                row["strategy"],
                gigabytes(row["arguments"]),
                gigabytes(row["temporaries"]),
                gigabytes(row["peak"]),
                gigabytes(row["has"]),
                "yes" if row["fits"] else "no",
                str(sum(row["messages"].values()) or "-"),
                gigabytes(row["sent"]),
                f"{row['FLOP'] / 1e12:.3g}",
            ]
            for row in rows
        ],
    )


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws each number over the number of chips, a curve for each strategy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    panels = zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True)
    for axes, (number, (label, unit, scale)) in panels:
        for name in dict.fromkeys(row["strategy"] for row in rows):
            found = [(row["chips"], row[number] / unit) for row in rows if row["strategy"] == name and row[number]]
            axes.plot(*zip(*sorted(found), strict=True), marker="o", label=name) if found else None
        axes.set(xscale="log", yscale=scale, xlabel="chips", title=label)
        if scale == "linear":
            axes.set_ylim(bottom=0)
        chips = sorted({row["chips"] for row in rows})
        axes.set_xticks(chips, map(str, chips), minor=False)
        axes.xaxis.set_tick_params(which="minor", bottom=False)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(STRATEGIES))
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--figure", type=Path, help="where to draw them: .svg, .png or .pdf")
    arguments = parser.parse_args()
    about = machine() | {"effort": os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"]}
    rows: list[dict[str, Any]] = []
    for topology in arguments.topologies:
        for name in arguments.strategies:
            print(f"{topology}, {name} ...", file=sys.stderr, flush=True)
            rows.append(measure(topology, name))
            if arguments.json:
                write_json(arguments.json, about | {"rows": rows})
    print(machine_line(about), report(rows), sep="\n\n")
    if arguments.figure:
        draw(rows, arguments.figure)


if __name__ == "__main__":
    main()
