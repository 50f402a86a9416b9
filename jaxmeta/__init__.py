r"""jaxmeta: meta-reinforcement learning as pure functions in JAX.

`jaxmeta.runs.experiments.load` loads a trained run from its folder, and `jaxmeta.runs.experiments.pretrained` gives the folder
of a run that comes with the library. Both are names of `jaxmeta`, too: `jaxmeta.load(jaxmeta.pretrained("rl2-gridnavi"))`.

# A map

The rooms are listed in the order of imports: each uses only earlier ones.

| room | what lives there |
|---|---|
| `jaxmeta.types` | the vocabulary: `jaxmeta.types.Learner`, `jaxmeta.types.MetaAlgorithm`, `jaxmeta.types.Trajectory` |
| `jaxmeta.checks` | checks of arguments |
| `jaxmeta.recurrences` | the linear recurrence that returns, traces and a recurrent network share |
| `jaxmeta.tasks` | families of tasks; your own by `jaxmeta.tasks.from_functions`, or by `jaxmeta.tasks.transform` from any gymnax environment |
| `jaxmeta.networks` | policies, values, recurrent networks, encoders of images and of flax modules |
| `jaxmeta.estimators` | returns, advantages, surrogates of the policy gradient, the exact oracle |
| `jaxmeta.rollouts` | acting, and lifetimes of updates |
| `jaxmeta.meta_updates` | meta-gradients, evolution strategies, the outer loop |
| `jaxmeta.learners` | the fast loops: how an agent learns in one task |
| `jaxmeta.algorithms` | one algorithm a file, with an example each |
| `jaxmeta.references` | Bayes-optimal values, exact posteriors, Gittins index, UCB1, Thompson and posterior sampling |
| `jaxmeta.evaluation` | adaptation curves, trials, reference agents, statistics with intervals |
| `jaxmeta.curricula` | which training tasks to draw, from what tasks gave before |
| `jaxmeta.plotting` | figures |
| `jaxmeta.runs` | the host's side: training, checkpoints, experiments, presets, metrics |
| `jaxmeta.datasets` | histories of learners, on disk and as windows to train on |
| `jaxmeta.deployment` | a trained agent in one real task |

# What the numbers mean

- One stream is one episode: where an episode ends before `num_steps`, what its stream does next is not learned from. Summing
  all episodes that fit would reward agents whose episodes end early.
- The baseline of each trajectory is fitted to the *other* trajectories of its task, so the baseline does not bias the
  gradient. λ below 1 (0.95 is the default) trades some bias for variance, as ever.
- Time limits are not terminations: trajectories carry the true successor and a discount that is 0 only where the task
  ended. MAML's own objective is the return up to the time limit, as in the papers.
- A stream with a reward, an observation or an action that is not finite is left out whole, and counted in
  `skipped_streams` (by learners with memory its trial, in `skipped_tasks`); a task whose meta-gradient is not finite is left
  out of that meta-update, and counted in `skipped_tasks`. With one step in a thousand broken MAML adapts to held-out goals
  as well as with none (figures in `benchmarks/RESULTS.md`); `transform.faulty(family, rate=1e-3)` shows what
  yours does. Evaluation does the same: `evaluation.adaptation_curve` counts the streams that it leaves out, `evaluation.summarize`
  the tasks. A task or an episode without a return is NaN there, and never 0.
- The unit of rewards does not matter to RL² and VariBAD, to MAML and ProMP with `normalize=True`, nor to A2C and LPO with
  `rule_learner(..., scale_rewards=True)`: rewards times 1 000 and times 0.001 give the same returns in units
  (`python benchmarks/units.py`). Nothing is claimed of the other algorithms:
  give them rewards of about 1.
- A run owns its folder from before it compiles: a second run into it is refused. If the process that owned the folder has ended,
  a new run may use it. A run that was killed before its first checkpoint can be begun again. All files are strict JSON: `"Infinity"`
  stands for an infinite setting, `null` for a metric that is not finite. A character that a terminal cannot show ends no run.
- jax's debug modes work with every algorithm: `jax.disable_jit`, `jax.debug_nans`, `jax.checking_leaks`, raw `PRNGKey`s, `rbg`
  keys, and strict dtype promotion. Strict promotion does not cover optimisers (optax's Adam raises an error in it). The families whose
  gymnax dynamics mix dtypes raise an error in it too: classic control but for the pendulum, Catch, Deep Sea, the reacher and MinAtar.
- Learners with memory are trained for whole trials: returns cross the ends of episodes, and the previous action and reward
  are shown across them too, for the last reward of an episode says most. Steps after a trial's last episode count for nothing.
- The library calls no LAPACK: jaxlib 0.10's batched CPU kernels can wait for each other for ever where there are few
  cores.

# Several devices

Several devices share the tasks of a meta-batch without a flag; their number must divide `--num-tasks` and, where it is
set, `--tasks-per-chunk`. Several processes share them too, if each calls `jax.distributed.initialize` before anything else.
Every process runs the same program; only process 0 prints and writes files, and all of them must see the folder.
Notebook 08 shows it on simulated devices; `jaxmeta.runs` has a guide to schedulers.

Learners with memory draw minibatches of trials. Devices share them where their number divides `minibatch_groups`
(`jaxmeta.learners.minibatches`). Then only gradients cross devices, once a minibatch, and one device with as many groups gives the
same numbers. Otherwise devices share acting alone: each device learns from all trials, and a warning says so.

# Names before 0.2.0

The modules moved into packages; there are no shims for the old names.

| 0.1 | 0.2 |
|---|---|
| `boxes`, `keys` | `tasks.boxes`, `tasks.keys` |
| `networks`, `distributions`, `graph_actor_critic` | `networks` (`policies`, `values`, `mlp`), `networks.distributions`, `networks.graph_actor_critic` |
| `memories` | `networks.recurrent` |
| `rollout`, `adaptation`, `lifelong` | `rollouts` (`rollout`, `lifetime`), `rollouts.lifelong` |
| `learner=, env=, num_streams=, num_steps=` of `adaptation` and `lifelong` | `setup=rollouts.Setup(learner, env, num_streams, num_steps)` |
| `adaptation.experience` | `rollouts.collect`, and `rollouts.sample` for new streams |
| `returns` | `estimators` (`returns`, `episodes`, `streams`, `units`, `baselines`) |
| `objectives`, `exact` | `estimators.surrogates`, `estimators.exact` |
| `meta_update`, `evolution`, `window_gradients` | `meta_updates` (`gradients`, `outer_loop`), `meta_updates.evolution`, `meta_updates.windows` |
| `gradient_learner`, `memory_learner`, `replay_learner`, `tunable_learner`, `update_rules` | `learners.gradient`, `learners.recurrent`, `learners.replay`, `learners.actor_critic`, `learners.update_rules` |
| `gradient_learner.learned`, `with_learned` | `learners.gradient.partition`, `combine` |
| `gradient_learner.stepped`, `meta_update.known_if` | `learners.gradient.inner_step`, `meta_updates.nan_unless` |
| `optimal` | `references` |
| `memory_learner.memory_learner`, `tunable_learner.tunable_learner` | `learners.recurrent_learner`, `learners.actor_critic_learner` |
| `memory_learner.action_features` | `networks.encode_action` |
| `memories.gru(num_inputs=3, size=64)`, `init(key)` | `networks.recurrent.gru(64)`, `init(key, 3)` |
| `rl2.recurrent_actor_critic(family, config)` | `rl2.network_of(family, config)`, `networks.recurrent_actor_critic(family, memory)` |
| `learned_objective.rule(config)` | `learned_objective.rule_of(config)`, or an object: `learned_objective(family, rule=lpg(), estimator=persistent_evolution_strategy)` |
| `window_gradients.evolution_strategy(..., persistent=True)` | `meta_updates.windows.persistent_evolution_strategy` |
| `returns.linear_recurrence` | `recurrences.linear_recurrence` |
| `tasks.door.TimeLimit`, `InvalidEnvironment` | `tasks.time_limit`, `tasks.environments` |
| `processes.first`, `of_first`, `anywhere`, `wait` | `is_main_process`, `broadcast`, `any_process`, `barrier` |
| `training`, `checkpoints`, `experiments`, `presets`, `sinks`, `reports`, ... | `runs.training`, ... |

One meta-update of every algorithm gives the numbers of 0.1 (`tests/algorithms/test_numbers.py`), but for RL² and VariBAD, whose
rewards have units of their own since. Functions of streams take `reward` and `discount` by place and all else by name. MAML's
`outer_surrogate`, which changed nothing, is gone. A setting that the chosen policy, target or algorithm does not use is an error. Also new: environments are checked at one door, folders belong to one run at a time,
broken streams are absent from every statistic, jax 0.10.2 is excluded.
"""

import warnings
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxmeta.runs.experiments import load as load
    from jaxmeta.runs.experiments import pretrained as pretrained

__version__ = "0.2.0"
_FROM_EXPERIMENTS = ("load", "pretrained")
__all__ = [
    "algorithms",
    "checks",
    "curricula",
    "datasets",
    "deployment",
    "estimators",
    "evaluation",
    "learners",
    "load",
    "meta_updates",
    "networks",
    "plotting",
    "pretrained",
    "recurrences",
    "references",
    "rollouts",
    "runs",
    "tasks",
    "types",
]
MISCOMPILES = "0.10.2"
"""A release of jax that compiles some programs wrongly on CPUs."""

if metadata.version("jax") == MISCOMPILES:
    warnings.warn(
        f"jax {MISCOMPILES} compiles some programs wrongly on CPUs: numbers may be wrong without a word. Install another "
        'release: pip install "jax>=0.10.1,!=0.10.2,<0.12"',
        RuntimeWarning,
        stacklevel=2,
    )


def __getattr__(name: str) -> Any:
    # Looked up when asked for: `import jaxmeta.tasks` should not have to wait for training and checkpoints.
    if name in _FROM_EXPERIMENTS:
        from jaxmeta.runs import experiments

        return getattr(experiments, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
