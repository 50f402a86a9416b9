"""Runs on the host: training, checkpoints, folders, processes, sinks, experiments and presets.

This is the only package that uses `jit`, files and signals. Its modules are imported one by one: a
script that needs `reports` alone does not wait for checkpoints.

# On a cluster

A program that can be stopped and started again by the same command:

```python
import sys
import jax

jax.distributed.initialize()  # with several processes only, and before anything else of jax

from jaxmeta import tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.runs import training

family, folder = tasks.make("gridnavi"), "runs/gridnavi"
algorithm = rl2(family, Config(num_episodes=4, minibatch_groups=16))
plan = training.Config(meta_updates=10_000, num_tasks=4096, checkpoint_every=500)
try:
    training.train(algorithm, family, plan, folder=folder, resume=training.can_resume(folder))
except training.Stopped as stop:
    sys.exit(stop.exit_code)
```

SIGTERM is what schedulers send before they end a job. `training.train` ends the call of the compiled program that is under way,
which takes about ``report_seconds``, saves a checkpoint, and raises `training.Stopped`. It suffices that one process gets the
signal: all stop at the same meta-update. The exit code is 75 (`training.START_AGAIN`) after SIGTERM and 130 after an interrupt. So a
scheduler can tell what to start again from what failed. The resumed run is bit-equal to a run without a stop. If a job is killed
without a signal, it goes on from its last checkpoint.

All processes must see the folder. Set ``JAX_COMPILATION_CACHE_DIR`` to a shared folder, too, and call
`training.enable_compilation_cache`: then a restart does not compile again.

**SLURM.** `jax.distributed.initialize()` finds the address, the number of processes and the devices by SLURM's variables. Start one
process a node, or one a GPU; all devices of all processes share the tasks, so their number must divide ``num_tasks``.

```bash
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --time=4:00:00
#SBATCH --requeue --signal=TERM@180 --open-mode=append
srun python train_gridnavi.py
status=$?
if [ $status -eq 75 ]; then scontrol requeue $SLURM_JOB_ID; fi
exit $status
```

``--signal=TERM@180`` sends SIGTERM to the processes of ``srun`` three minutes before the time is up. A preempted job gets SIGTERM,
too, and SLURM requeues it by itself.

**Kubernetes.** An indexed Job gives each pod its number. ``podFailurePolicy`` starts pods again that ended with 75 without counting
a failure. The grace period must be longer than the call under way and a checkpoint take.

```yaml
apiVersion: batch/v1
kind: Job
metadata: {name: gridnavi}
spec:
  completionMode: Indexed
  completions: 2
  parallelism: 2
  backoffLimit: 0
  podFailurePolicy:
    rules:
      - action: Ignore
        onExitCodes: {operator: In, values: [75]}
      - action: Ignore
        onPodConditions: [{type: DisruptionTarget}]
  template:
    spec:
      subdomain: gridnavi
      restartPolicy: Never
      terminationGracePeriodSeconds: 180
      containers:
        - name: train
          image: registry.example/jaxmeta
          command: [python, train_gridnavi.py]
```

There, name the coordinator yourself:
``jax.distributed.initialize("gridnavi-0.gridnavi:1234", 2, int(os.environ["JOB_COMPLETION_INDEX"]))``; the name needs a headless
service `gridnavi`. If one pod ends without the others, the rest wait for it until jax's heartbeat gives up, and then fail.
"""

__all__ = [
    "checkpoints",
    "claims",
    "experiments",
    "memory",
    "metric_lines",
    "presets",
    "processes",
    "records",
    "reports",
    "run_folder",
    "sinks",
    "terminal",
    "training",
]
