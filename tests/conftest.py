"""Strict settings for every test, and a compilation cache that makes a second run quick."""

import functools
import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
# The suite's time is compilation: of small programs, which run quickly however they were compiled.
# What runs long asks for `in_earnest`.
QUICKLY = (  # the new emitters take longer to compile, and so do many small modules
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
    "--xla_cpu_parallel_codegen_split_count=1"
)
IN_EARNEST = f"--xla_backend_optimization_level=2 {QUICKLY}"
"""Flags for programs that tests start and that run long."""
os.environ.setdefault("XLA_FLAGS", f"--xla_backend_optimization_level=0 {QUICKLY}")
CACHE = os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)

import hypothesis  # noqa: E402
import hypothesis.strategies  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process runs whole files, unless ``--dist`` says otherwise: the tests of a file share fixtures and traced functions. Slow tests are
    few and long: a process that is done takes over a part of another's."""
    if config.option.dist != "load":
        return None
    from xdist.scheduler import LoadFileScheduling, WorkStealingScheduling

    schedulings = {"not slow": LoadFileScheduling, "slow": WorkStealingScheduling}
    scheduling = schedulings.get(config.option.markexpr)
    return scheduling and scheduling(config, log)


# How long an example takes says what else the machine does, and whether it compiled.
# Examples are the same in every run: a failure is the code's, and not the day's.
hypothesis.settings.register_profile("untimed", deadline=None, derandomize=True)
hypothesis.settings.load_profile("untimed")


@hypothesis.settings(max_examples=1)
@hypothesis.given(hypothesis.strategies.none())
def first_example(_):
    """Hypothesis asks the garbage collector at its first example who holds its random numbers."""


def pytest_collection_finish():
    """jax keeps many small objects. The garbage collector looks through them less often, which saves a tenth of the time."""
    first_example()  # while the collector still sees everything
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.fixture
def x64():
    """float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def in_earnest(monkeypatch):
    """What the test compiles is optimised: a program compiles three times as long and runs six times as
    fast, which a check of learning repays. jax refuses such options to a program within a program."""
    options = {"xla_backend_optimization_level": 2}
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
