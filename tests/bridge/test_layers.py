"""The layers of a torch module that looks like a ResNet have the shapes and counts that torch gives them."""

import torch

from lightjax_torch import summarize_layers


class Residual(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.bn1(self.conv1(x)))))


class ResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = torch.nn.Sequential(Residual(8), Residual(8))
        self.head = torch.nn.Linear(8, 10)

    def forward(self, images, *, scale=1.0):
        return self.head(self.blocks(self.stem(images * scale)).mean((2, 3)))


def test_counts_and_shapes_are_those_of_torch():
    module, images = ResNet(), torch.zeros(4, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = summarize_layers(module, images, scale=2.0)
    layers = {one.path: one for one in found.layers}
    assert found.parameters == sum(parameter.numel() for parameter in module.parameters()) == 224 + 2 * (1152 + 16) + 90
    assert layers["blocks/0"].parameters == 2 * 576 + 16
    assert layers["blocks/1/bn1"].parameters == 16
    assert (layers["stem"].inputs, layers["stem"].outputs) == (("float32[4,3,32,32]",), ("float32[4,8,16,16]",))
    assert layers["head"].outputs == ("float32[4,10]",)
    assert [one.path for one in found.layers][:4] == ["", "stem", "blocks", "blocks/0"]
    # Nothing was computed: the running statistics are where they were, and no hook stays.
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
