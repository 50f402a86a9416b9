"""What one process does by itself, and what two tell each other."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxmeta.runs import processes
from tests.probes import FAIL_AT_ONCE, exit_codes


def test_one_process_asks_nobody():
    assert processes.first()
    assert processes.of_first(7) == 7
    assert processes.anywhere(True) is True
    assert processes.anywhere(False) is False
    processes.wait("here")
    mesh = jax.make_mesh((1,), ("tasks",))
    tree = {"key": jax.random.key(3), "x": jnp.arange(4.0)}
    there = processes.spread(tree, NamedSharding(mesh, PartitionSpec()))
    np.testing.assert_array_equal(there["x"], tree["x"])
    assert there["key"] == tree["key"]


TWO = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
from jaxmeta.runs import processes
me = jax.process_index()
assert processes.first() == (me == 0)
assert processes.of_first(7 + me) == 7
assert processes.anywhere(me == 1) is True
assert processes.anywhere(False) is False
processes.wait("here")
mesh = jax.make_mesh((2,), ("tasks",), axis_types=(AxisType.Auto,))
tree = {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4)), "x": jnp.arange(4.0)}
there = processes.spread(tree, NamedSharding(mesh, PartitionSpec()))
for name, x in there.items():
    assert len(x.sharding.device_set) == 2, name
    assert x.dtype == tree[name].dtype
total = jax.jit(lambda t: jnp.sum(t["x"]) + jax.random.uniform(t["key"]))(there)
np.testing.assert_allclose(total, 6 + jax.random.uniform(jax.random.key(3)), rtol=1e-6)
"""


def test_two_processes_agree():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, "-c", FAIL_AT_ONCE + TWO, str(process), port],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for process in range(2)
    ]
    assert exit_codes(started) == [0, 0]
