"""Hostile settings: eight simulated devices, strict ranks, no files in the checkout, no threads left behind.

What one test has compiled the next one finds, also in another process: most tests compile the same small models.

Warnings are errors too; pyproject.toml lists the exceptions.
"""

import atexit
import os
import shutil
import tempfile
import threading
import time

# The backend reads these when it starts; processes started by tests inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Simulated devices wait for each other in a thread pool: with fewer than two threads a device, about 64
# steps in flight deadlock.
os.environ.setdefault("PJRT_NPROC", "16")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lightjax_tests_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# Should they deadlock all the same, the process ends after 20 s instead of 40 s and says in which collective.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=10",
        "--xla_cpu_collective_call_terminate_timeout_seconds=20",
    ]
).strip()

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests run on one device unless they name more: bits are compared with loops on one.
jax.config.update("jax_default_device", jax.devices()[0])

THREADS_ALLOWED_TO_STAY = (
    "asyncio_",  # orbax works through asyncio's default executor, which lives until the process ends
)
THREAD_GRACE_S = 5.0  # a thread told to stop may still be on its way out


def pytest_report_header() -> str:
    """Shows at the top of every run what the tests run on."""
    return f"jax: {jax.__version__}, {jax.device_count()} {jax.default_backend()} devices"


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    """Runs the test in a directory of its own: what it writes by default never lands in the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_leftover_threads():
    """Fails a test that leaves a thread running that would keep the user's process from ending."""
    before = set(threading.enumerate())
    yield

    def leftover():
        return [
            thread
            for thread in threading.enumerate()
            if thread not in before and not thread.daemon and not thread.name.startswith(THREADS_ALLOWED_TO_STAY)
        ]

    deadline = time.monotonic() + THREAD_GRACE_S
    while leftover() and time.monotonic() < deadline:
        time.sleep(0.01)
    names = sorted(thread.name for thread in leftover())
    assert not names, f"threads left running after the test: {names}"
