"""examples/lightning_digits.py: both trainers give the same module the same weights."""

import importlib.util
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lightning.pytorch", reason="the example compares with Lightning")


def test_both_trainers_give_the_same_weights(monkeypatch, capsys):
    path = Path(__file__).parents[2] / "examples" / "lightning_digits.py"
    spec = importlib.util.spec_from_file_location("lightning_digits", path)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "argv", ["lightning_digits.py", "--epochs", "1", "--batch-size", "128"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(example)
        example.main()
    assert "The weights are the same, bit for bit." in capsys.readouterr().out
