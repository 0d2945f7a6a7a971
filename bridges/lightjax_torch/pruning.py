"""What stands in for `lightjax.Pruning` where a module runs in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import lightjax
from lightjax.callbacks import Callback
from lightjax.callbacks.callback import Stage
from lightjax.data.position import decode, encode
from lightjax.errors import ConfigurationError

if TYPE_CHECKING:
    from lightjax.run import Run
    from lightjax_torch.engine import TorchEngine


class Masking(Callback):
    """Makes the smallest entries zero at the ends of epochs, and again after every step of an optimizer.

    The masks are part of a checkpoint, one bit an entry.

    Args:
      engine: runs the module.
      asked: says which parameters, how many entries and when.
    """

    every_n_steps = None

    def __init__(self, engine: TorchEngine, asked: lightjax.Pruning) -> None:
        self._engine = engine
        self._asked = asked
        self._params: dict[str, torch.Tensor] = {}
        self._masks: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def setup(self, run: Run, stage: Stage) -> None:
        """Checks that there is something to prune, and follows the optimizers."""
        if stage != "fit":
            return
        self._masks = {}
        self._params = {
            name: one
            for name, one in self._engine.module.named_parameters()
            if self._asked.is_pruned(name, tuple(one.shape))
        }
        if not self._params:
            raise ConfigurationError(f"Pruning finds nothing to prune with parameters={self._asked.parameters}.")
        self._hooks = [one.register_step_post_hook(self._hold) for one in self._engine.optimizers]

    def teardown(self, run: Run, stage: Stage) -> None:
        """Lets the optimizers go."""
        for one in self._hooks:
            one.remove()
        self._hooks = []

    @torch.no_grad()
    def on_train_epoch_end(self, run: Run) -> None:
        """Prunes, and reports the share of zeros as `sparsity`."""
        if not self._asked.is_due(run.epoch, run.epoch_ended):
            return
        for name, mask in self._found(self._asked.amount_at(run.epoch)).items():
            self._masks[name] = mask & self._masks[name] if name in self._masks else mask
        self._hold()
        zeros = torch.stack([mask.logical_not().sum() for mask in self._masks.values()]).sum()
        run.log({"sparsity": zeros.item() / sum(mask.numel() for mask in self._masks.values())})

    def state_dict(self) -> dict[str, Any]:
        """Returns the masks."""
        return {"masks": encode({name: np.packbits(mask.cpu().numpy()) for name, mask in self._masks.items()})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the masks back; the parameters are zero already."""
        for name, packed in decode(state["masks"]).items():
            param = self._params[name]
            bits = torch.from_numpy(np.unpackbits(packed, count=param.numel())).to(param.device, torch.bool)
            self._masks[name] = bits.reshape(param.shape)

    @torch.no_grad()
    def _hold(self, *_: Any) -> None:
        for name, mask in self._masks.items():
            self._params[name].mul_(mask)

    def _found(self, amount: float) -> dict[str, torch.Tensor]:
        sizes = {name: one.detach().abs() for name, one in self._params.items()}
        together = torch.cat([one.flatten() for one in sizes.values()]) if self._asked.scope == "global" else None
        masks = {}
        for name, size in sizes.items():
            ranked = size.flatten() if together is None else together
            smallest = round(amount * ranked.numel())
            if not smallest:
                masks[name] = torch.ones_like(size, dtype=torch.bool)
                continue
            threshold = ranked.kthvalue(smallest).values
            masks[name] = size.to(threshold.dtype) > threshold
        return masks
