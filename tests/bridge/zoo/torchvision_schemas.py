"""Lets torchvision be imported beside a torch for the CPU; the libraries of models import it and call none of these."""

import torch

# The wheel of the package index is built for a GPU: its compiled operators do not load, and its import wants these two
# to be known.
if not hasattr(torch.ops.torchvision, "nms"):
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
