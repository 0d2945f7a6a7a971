"""Programs compiled in the background."""

import queue

import jax
import jax.numpy as jnp

from lightjax.engine import compiler
from lightjax.engine.compiler import Compiler


def test_memory_is_given_back_after_each_program_is_handed_over(monkeypatch):
    given_back = queue.Queue()
    real = compiler._give_memory_back
    monkeypatch.setattr(compiler, "_give_memory_back", lambda: given_back.put(real()))
    background = Compiler({})
    lowered = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2,), jnp.float32))
    programs = [background.submit(lowered) for _ in range(2)]
    assert [program.result()(jnp.ones(2)).tolist() for program in programs] == [[2, 2], [2, 2]]
    assert [given_back.get(timeout=60) for _ in programs] == [None, None]
    background.close()
