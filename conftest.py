"""Runs the docstring examples of `lightjax/` and `bridges/` under the same hostile settings as the tests."""

from tests.conftest import in_tmp_path, no_leftover_threads

__all__ = ["in_tmp_path", "no_leftover_threads"]
