"""The wheel holds everything that an installation outside the checkout needs."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lightjax", "lightjax_torch")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Builds from a copy, which keeps the checkout clean, and without isolation, which needs no network."""
    source = tmp_path_factory.mktemp("source") / "lightjax"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "lightjax_logs", "build", "dist")
    shutil.copytree(ROOT, source, ignore=ignored)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    [path] = out.glob("*.whl")
    return path


def test_wheel_holds_both_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {name.split("/")[0] for name in names} == {*PACKAGES, info}
    assert f"{info}/licenses/LICENSE" in names
    for package, folder in zip(PACKAGES, (ROOT / "lightjax", ROOT / "bridges" / "lightjax_torch"), strict=True):
        for file in folder.rglob("*.py"):
            assert f"{package}/{file.relative_to(folder).as_posix()}" in names
        assert f"{package}/py.typed" in names, f"{package} has annotations that type checkers will not read"


def test_both_packages_import_from_the_wheel_outside_the_checkout(wheel, tmp_path):
    pytest.importorskip("torch")
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--no-index",
        "--target",
        target,
        wheel,
        cwd=elsewhere,
    )
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r})\n"
        "import json, lightjax, lightjax_torch\n"
        "print(json.dumps([lightjax.__file__, lightjax_torch.__file__]))"
    )
    files = json.loads(run(sys.executable, "-c", code, cwd=elsewhere))
    assert files == [str(target / package / "__init__.py") for package in PACKAGES]
