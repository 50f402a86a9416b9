"""Curricula: which training tasks to draw, from what tasks gave before.

| curriculum | draws | use it |
|---|---|---|
| none | independent training tasks (domain randomisation) | first: it is the control that all others must beat |
| `plr` | tasks seen before, by their scores, and new ones | if some tasks teach more than others |
| `accel` | also small changes of tasks that taught much | if the family has a ``mutate`` |
| `sfl` | tasks that are solved sometimes | if success is a yes or a no |
| `roml` | tasks like those with the lowest returns | for the worst tasks; if the family has ``parameters`` |

A curriculum is a `types.Curriculum`, the argument ``curriculum`` of `runs.training.train`. Its state is a part of the run.

```python
from jaxmeta import curricula, tasks
from jaxmeta.algorithms.rl2 import Config, rl2
from jaxmeta.runs import training

family = tasks.make("maze", size=5, horizon=20)
algorithm = rl2(family, Config(num_minibatches=1))
levels = curricula.plr(family, curricula.PLRConfig(capacity=64, learns_from_new=False))
run = training.train(algorithm, family, training.Config(meta_updates=2, num_tasks=16), curriculum=levels)
```
"""

from jaxmeta import types
from jaxmeta.curricula import edits, learnability, levels, meta_update, replay, scores, tails
from jaxmeta.curricula.edits import ACCELConfig, accel
from jaxmeta.curricula.learnability import SFLConfig, sfl
from jaxmeta.curricula.meta_update import check_fits, step
from jaxmeta.curricula.replay import PLRConfig, plr
from jaxmeta.curricula.tails import RoMLConfig, roml

__all__ = [
    "ACCELConfig",
    "PLRConfig",
    "RoMLConfig",
    "SFLConfig",
    "accel",
    "check_fits",
    "edits",
    "learnability",
    "levels",
    "meta_update",
    "plr",
    "replay",
    "roml",
    "scores",
    "sfl",
    "step",
    "tails",
]

types.document_fields()
