"""Some of torch's operators, a sample or two each, against the ledger; `make opinfo` runs all of them."""

import jax
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest")  # torch imports it with its database

from tests.bridge.opinfo import ledger  # noqa: E402
from tests.bridge.opinfo.samples import differentiable, operators, run, samples  # noqa: E402

# One or two of every family of rules.
SAMPLED = {
    *("addmm", "atan2", "cumsum", "digamma", "linalg.det", "linalg.inv", "nanmedian", "nn.functional.avg_pool2d"),
    *("nn.functional.conv2d", "nn.functional.grid_sample", "nn.functional.interpolate", "nn.functional.layer_norm"),
    *("nn.functional.max_pool2d", "nn.functional.pad", "ormqr", "pow", "put", "sgn", "softmax", "var", "where"),
}


@pytest.fixture(scope="module")
def database():
    return [op for op in operators() if op.name in SAMPLED and op.supports_dtype(torch.float32, "cpu")]


def test_the_sampled_operators_are_right(database):
    entries, wrong, missing = ledger.load(), [], []
    assert {op.name for op in database} == SAMPLED
    with jax.enable_x64(False):
        for op in database:
            gradient = differentiable(op, torch.float32)
            for sample in samples(op, torch.float32, 2):
                found = run(op, sample, torch.float32, gradient)
                if found.kind == "wrong":
                    wrong.append(f"{op.full_name}: {found.reason}")
                count = entries[op.full_name].float32
                if found.kind == "missing" and count.passed == count.expressible:
                    missing.append(f"{op.full_name}: {found.reason}")
    assert not wrong
    assert not missing


def test_no_line_of_the_ledger_is_wrong():
    assert not [str(line) for line in ledger.load().values() if any(count.wrong for count in line.counts.values())]


def test_a_line_gets_worse_where_fewer_pass_or_more_are_wrong():
    before = ledger.parse("add float32=9/10 int64=2/2")["add"]
    assert not ledger.parse("add float32=18/20")["add"].worse_than(before)
    assert ledger.parse("add float32=8/10")["add"].worse_than(before) == ["add float32: 8/10, was 9/10"]
    assert ledger.parse("add int64=1/2!1")["add"].worse_than(before) == ["add int64: 1/2!1, was 2/2"]
    assert ledger.parse("add int64=0/0")["add"].worse_than(before)
