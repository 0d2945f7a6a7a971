"""How models are compared, and the ledger; `make zoo` compares those of transformers and timm."""

import pytest

torch = pytest.importorskip("torch")

from tests.bridge.zoo import ledger  # noqa: E402
from tests.bridge.zoo.comparison import Model, compare  # noqa: E402


class Residual(torch.nn.Module):
    """A convolution with BatchNorm and attention over the pixels, with a part in float32 as many models have."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.wrong = wrong
        self.stem, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.attention, self.head = torch.nn.MultiheadAttention(8, 2, batch_first=True), torch.nn.Linear(8, 5)

    def forward(self, images):
        x = torch.relu(self.norm(self.stem(images))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
        x = x * (1.001 if self.wrong and torch.compiler.is_compiling() else 1)
        return self.head(x.to(images.dtype).mean(1))


def model(module):
    torch.manual_seed(0)
    return Model(module.train(), {"images": torch.randn(4, 3, 6, 6)}, lambda module, batch: module(batch["images"]))


def test_a_model_passes_in_both_precisions():
    found = compare(model(Residual()))
    assert found.kind == "passes", found.reason
    assert found.wide < 1e-12
    assert found.narrow < 1e-4


def test_a_model_of_other_numbers_fails_with_the_worst_tensor():
    found = compare(model(Residual(wrong=True)), narrow=False)
    assert found.kind == "fails"
    assert "is off by" in found.reason


def test_what_depends_on_values_is_not_applicable():
    class Masking(Residual):
        def forward(self, images):
            return super().forward(images) * images[images > 0].mean()

    assert compare(model(Masking()), narrow=False).kind == "not applicable"


def test_no_model_of_the_ledger_fails_without_a_reason():
    lines = ledger.load()
    assert all(line.reason for line in lines.values() if line.kind != "passes")
    assert not [line for line in lines.values() if line.kind == "passes" and line.wide > 1e-6]


def test_a_line_is_read_as_it_was_written(tmp_path):
    lines = [
        ledger.Line("timm/a", "passes", 2e-13, 3e-6),
        ledger.Line("timm/b", "fails", reason="no rule"),
        ledger.Line("transformers/c", "not applicable", reason="a shape depends on values"),
    ]
    ledger.write(lines, tmp_path / "ledger.txt")
    read = ledger.load(tmp_path / "ledger.txt")
    assert list(read.values()) == lines
    assert "# timm: 1 of 2 models pass, 0 not applicable" in (tmp_path / "ledger.txt").read_text()
    assert read["timm/b"].worse_than(read["timm/a"])
    assert not read["timm/a"].worse_than(read["timm/b"])
