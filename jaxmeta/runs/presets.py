"""Presets: experiments by name, with the settings behind the measured figures in `benchmarks/RESULTS.md`.

    experiment = presets.PRESETS["rl2-gridnavi"]
    run = experiments.train(experiment, folder="runs/gridnavi")

or ``python benchmarks/train.py --preset rl2-gridnavi``. The benchmark scripts take their settings
from here. Scripts with training loops of their own, with other schedules or several families at
once, hold their own settings: ``off_policy_evaluation.py``, ``learned_objective.py`` and
``meta_gradient.py``.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxmeta import checks, types
from jaxmeta.algorithms import ALGORITHMS
from jaxmeta.runs import training
from jaxmeta.runs.experiments import Experiment


@dataclasses.dataclass(frozen=True)
class Variant:
    """An algorithm in the comparison of gradient-based algorithms, with its settings beside the defaults."""

    algorithm: str
    """A name in `algorithms.ALGORITHMS`."""
    title: str
    """Name in tables and figures."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the algorithm's ``Config``."""
    task_share: float = 1.0
    """Tasks in a meta-batch, as a share of the other algorithms' tasks."""


_SCORE = {"inner_surrogate": "score"}


VARIANTS = {
    "maml": Variant("maml", "MAML"),
    "maml_first_order": Variant("maml", "MAML, first order", {"first_order": True}),
    "maml_score": Variant("maml", "MAML, score surrogate inside", _SCORE),
    "emaml": Variant("maml", "E-MAML", _SCORE | {"sampling_correction": "score"}),
    "emaml_leave_one_out": Variant(
        "maml", "E-MAML, leave-one-out", _SCORE | {"sampling_correction": "leave_one_out"}
    ),
    "meta_sgd": Variant("maml", "Meta-SGD", {"step_sizes": "parameter"}),
    "anil": Variant("maml", "ANIL", {"adapts": "head"}),
    "cavia": Variant("maml", "CAVIA", {"adapts": "context", "context_size": 8}),
    "promp": Variant("promp", "ProMP"),
    "maml_trpo": Variant("maml_trpo", "MAML-TRPO", {"cg_steps": 5}),
    "reptile": Variant("reptile", "Reptile", {"num_updates": 1}),
    "imaml": Variant("imaml", "iMAML"),
    "es": Variant("es", "ES", {"population_size": 16}, task_share=0.4),
    "no_meta_learning": Variant("maml", "no meta-learning", {"num_updates": 0}),
}
"""The gradient-based algorithms that ``benchmarks/algorithms.py`` compares."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A family in the comparison of gradient-based algorithms."""

    settings: Mapping[str, Any]
    """Settings of the family's constructor."""
    step_size: float
    """Inner step size, which depends on the scale of the rewards."""
    share: float
    """Meta-updates, as a share of navigation's: some families need fewer, or no number of them
    helps."""
    learning_rate: float | None = None
    """Learning rate of the outer Adam; None means the algorithm's default."""


COLUMNS = {
    "navigation": Column({}, 0.5, 1.0),
    # With sparse rewards gradients are mostly noise, and Adam makes full-size steps from noise.
    "sparse_navigation": Column({}, 0.5, 1.0, learning_rate=1e-3),
    "cartpole": Column({"horizon": 100}, 0.1, 0.2),
    "pendulum": Column({"horizon": 100}, 0.01, 0.4),
    # No random walk reaches the top within an episode, so there is no signal to learn from.
    "mountain_car": Column({}, 0.1, 0.05),
    "acrobot": Column({"horizon": 100}, 0.1, 0.3),
}
"""The families, with settings that suit MAML."""


def compared(
    variant: str,
    family: str,
    *,
    meta_updates: int = 100,
    num_tasks: int = 10,
    num_streams: int = 10,
) -> Experiment:
    """The experiment of one of `VARIANTS` on one of `COLUMNS` in the comparison.

    ``meta_updates`` and ``num_tasks`` are those of MAML on navigation. All variants get the same
    number of environment steps, which may be another number of meta-updates; the experiment's plan
    holds the planned number.
    """
    checks.choice("variant", variant, VARIANTS)
    checks.choice("family", family, COLUMNS)
    for name, count in dict(
        meta_updates=meta_updates, num_tasks=num_tasks, num_streams=num_streams
    ).items():
        checks.at_least(name, count, 1)
    how, column = VARIANTS[variant], COLUMNS[family]
    hyper: dict[str, float] = {"step_size": column.step_size}
    if how.algorithm == "imaml":
        # The proximal strength is the reciprocal of a step size; the solver's steps are smaller.
        hyper = {"step_size": column.step_size / 4, "proximal": 2 / column.step_size}
    if column.learning_rate is not None and how.algorithm in ("maml", "promp", "imaml"):
        hyper["learning_rate"] = column.learning_rate
    return Experiment(
        algorithm=how.algorithm,
        family=family,
        config={"num_streams": num_streams} | dict(how.config),
        hyper=hyper,
        family_settings=column.settings,
        plan=training.Config(
            meta_updates=max(1, round(meta_updates * column.share)),
            num_tasks=max(1, round(num_tasks * how.task_share)),
        ),
    )


def lasting(experiment: Experiment, meta_updates: int) -> Experiment:
    """``experiment`` for another number of meta-updates, over which annealed settings fall too, unless ``anneal_updates`` is infinite."""
    hyper = dict(experiment.hyper)
    anneals = "anneal_updates" in ALGORITHMS[experiment.algorithm].Hyper._fields
    if anneals and hyper.get("anneal_updates") != math.inf:
        hyper["anneal_updates"] = meta_updates
    if "epsilon_updates" in hyper:
        hyper["epsilon_updates"] *= meta_updates / experiment.plan.meta_updates
    return dataclasses.replace(
        experiment,
        hyper=hyper,
        plan=dataclasses.replace(experiment.plan, meta_updates=meta_updates),
    )


def _memory(
    family: str,
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    hyper: Mapping[str, float],
    meta_updates: int,
    num_tasks: int,
    algorithm: str = "rl2",
    **told: int,
) -> Experiment:
    """An experiment with a learner with memory; learning rate and entropy cost fall to zero over the run. ``told`` is of the plan."""
    plan = training.Config(meta_updates=meta_updates, num_tasks=num_tasks, **told)
    return lasting(Experiment(algorithm, family, config, hyper, settings, plan), meta_updates)


_HYPERNETWORK = {"encoder_sizes": (32,), "head": "hyper"}


def _bandit(
    num_arms: int,
    num_pulls: int,
    meta_updates: int,
    num_tasks: int,
    size: int,
    network: Mapping[str, Any] | None = None,
    **hyper: float,
) -> Experiment:
    """An experiment on Bernoulli bandits; settings that are not given worked on the smallest bandit."""
    shared = dict(discount=1.0, gae_lambda=0.9, entropy_cost=0.02)
    return _memory(
        "bernoulli_bandit",
        dict(num_arms=num_arms, num_pulls=num_pulls),
        dict(memory_size=size, **(network or {})),
        shared | hyper,
        meta_updates,
        num_tasks,
    )


def _dependent_bandit(kind: str) -> Experiment:
    return _memory(
        "dependent_bandit",
        dict(kind=kind, num_pulls=100),
        dict(memory_size=32),
        dict(discount=1.0, gae_lambda=0.9, learning_rate=3e-3, entropy_cost=0.06),
        meta_updates=400,
        num_tasks=512,
    )


def _gridnavi(algorithm: str) -> Experiment:
    return _memory(
        "gridnavi",
        {},
        dict(num_episodes=4, hidden_sizes=(128, 64)),
        dict(discount=0.99, gae_lambda=0.9, learning_rate=3e-3, entropy_cost=0.06),
        meta_updates=400,
        num_tasks=256,
        algorithm=algorithm,
    )


def _tabular(
    memory: str, config: Mapping[str, Any], entropy_cost: float, meta_updates: int, num_tasks: int
) -> Experiment:
    return _memory(
        "tabular",
        {},
        dict(num_episodes=10, memory=memory, **config),
        dict(discount=0.99, gae_lambda=0.9, learning_rate=3e-3, entropy_cost=entropy_cost),
        meta_updates,
        num_tasks,
    )


_TWO_EPISODES = dict(memory="linear", memory_size=64, encoder_sizes=(64,), num_episodes=2)


PRESETS: dict[str, Experiment] = {
    f"{variant}-{family}": compared(variant, family) for variant in VARIANTS for family in COLUMNS
} | {
    "maml-navigation": Experiment(),
    # The main job of benchmarks/train.py. It closes 94.4 % of the gap in one step, and 500 meta-updates at the default
    # learning rate 95.4 % (means of three seeds), in 0.6 of the CPU time. At 2e-2 runs of 500 meta-updates diverge.
    "maml-navigation-quick": Experiment(
        hyper=dict(learning_rate=1e-2), plan=training.Config(meta_updates=200)
    ),
    "maml-navigation-2m": compared("maml", "navigation"),  # 2 million environment steps
    # Duan et al. 2016, tables 1 and 2
    "rl2-bandit-5-10": _bandit(5, 10, 400, 2048, 32, learning_rate=3e-3),
    "rl2-bandit-50-10": _bandit(50, 10, 2000, 4096, 128, learning_rate=1e-3),
    # From 600 meta-updates it earns no less than the plain network from 1 000.
    "rl2-bandit-5-100": _bandit(
        5, 100, 600, 2048, 32, _HYPERNETWORK, learning_rate=3e-3, entropy_cost=0.03
    ),
    "rl2-bandit-50-100": _bandit(50, 100, 4000, 4096, 128, learning_rate=1e-3),
    "rl2-bandit-10-500": _bandit(10, 500, 4000, 2048, 256),
    "rl2-bandit-50-500": _bandit(50, 500, 4000, 2048, 256),
    "rl2-tabular-counts": _tabular("counts", dict(num_epochs=3), 0.02, 120, 128),
    "rl2-tabular-gru": _tabular("gru", dict(num_minibatches=8), 0.04, 450, 1024),
    # Wang et al. 2016, section 3.1
    **{
        f"rl2-dependent_bandit-{kind}": _dependent_bandit(kind)
        for kind in ("easy", "uniform", "medium", "hard", "independent")
    },
    # Zintgraf et al. 2020, section 5.1
    "rl2-gridnavi": _gridnavi("rl2"),
    "varibad-gridnavi": _gridnavi("varibad"),
    # A hypernetwork head, a larger latent, a heavier divergence and PPO's gradient in the encoder; benchmarks/beliefs.py measures what
    # each is worth.
    "varibad-gridnavi-quick": _memory(
        "gridnavi",
        {},
        dict(
            num_episodes=4,
            hidden_sizes=(64,),
            latent_size=32,
            head="hyper",
            policy_sizes=(),
            end_to_end=True,
            decoder_sizes=(32, 32),
            reward_decoder="successor",
            reward_error="cross_entropy",
        ),
        dict(
            gae_lambda=0.9,
            learning_rate=3e-3,
            entropy_cost=0.06,
            reward_cost=1.0,
            kl_cost=0.3,
        ),
        meta_updates=250,
        num_tasks=128,
        algorithm="varibad",
    ),
    # The published numbers, for 20 million environment steps, as in the authors' code for GridNavi; another version of it has 100 million
    # steps and other weights. Several things differ. PPO's value loss is neither clipped nor Huber's. Nothing is embedded, and the policy's
    # inputs are not normalised. States are one-hot cells, and were coordinates with a flag. The decoder's units are tanh. The gradient of the
    # belief is clipped, too, and its loss is a mean over pairs of steps. The belief learns from the first meta-update on. A checkpoint
    # takes 1.3 GB before compression.
    "varibad-gridnavi-published": _memory(
        "gridnavi",
        {},
        dict(
            num_episodes=4,
            hidden_sizes=(32,),
            latent_size=5,
            num_epochs=2,
            sees_time=False,
            spread="log_variance",
            decoder_sizes=(32, 32),
            reward_decoder="successor",
            reward_error="cross_entropy",
            replay_trials=100_000,
            replayed_trials=25,
            belief_steps=3,
        ),
        dict(
            discount=0.95,
            learning_rate=7e-4,
            belief_learning_rate=1e-3,
            anneal_updates=math.inf,
            max_grad_norm=0.5,
            clip=0.05,
            reward_cost=1.0,
            kl_cost=0.01,
        ),
        meta_updates=20_833,
        num_tasks=16,
        algorithm="varibad",
        checkpoint_every=2000,
    ),
    # The next cell to search is worth little more than the second best, so it is tried by temperature. By ε alone returns
    # rose later, and seeds settled on ways to search that earn up to 2 less.
    "recurrent_q-gridnavi": _memory(
        "gridnavi",
        {},
        dict(
            num_episodes=4,
            num_minibatches=8,
            hidden_sizes=(128,),
            replay_trials=4096,
            replayed_trials=8,
        ),
        dict(
            discount=0.92,
            trace_lambda=0.9,
            learning_rate=2e-3,
            first_epsilon=0.1,
            last_epsilon=0.01,
            first_temperature=0.05,
            last_temperature=0.01,
            epsilon_updates=90,
            diversity=1.0,
        ),
        meta_updates=320,
        num_tasks=64,
        algorithm="recurrent_q",
    ),
    # games, robots, language
    "rl2-maze": _memory(
        "maze", {}, _TWO_EPISODES, dict(learning_rate=3e-3, entropy_cost=0.03), 150, 128
    ),
    "rl2-swimmer": _memory(
        "swimmer",
        dict(horizon=50, num_urchins=1),
        _TWO_EPISODES,
        dict(learning_rate=3e-3, entropy_cost=0.001),
        200,
        128,
    ),
    # Both need Brax. Like the papers' benchmark, but of episodes of 50 steps instead of 100 to 200.
    "rl2-half_cheetah_direction": _memory(
        "half_cheetah_direction",
        dict(horizon=50),
        dict(memory_size=64, num_episodes=2, num_streams=2),
        dict(learning_rate=1e-3, entropy_cost=0.01),
        240,
        32,
    ),
    # An inner step must change the policy. With an initial standard deviation of 1 it hardly does,
    # and the same amount of experience teaches nothing. Adapting the last layer alone, learned step
    # sizes, and more episodes in fewer tasks (there are only two) each helped too.
    "promp-half_cheetah_direction": Experiment(
        "promp",
        "half_cheetah_direction",
        config=dict(
            num_streams=20,
            num_updates=1,
            num_epochs=10,
            step_sizes="parameter",
            adapts="head",
            normalize=True,
            initial_std=0.5,
        ),
        hyper=dict(step_size=0.2, learning_rate=3e-3),
        family_settings=dict(horizon=50),
        plan=training.Config(meta_updates=192, num_tasks=4),
    ),
    "maml-summarisation": Experiment(
        "maml",
        "summarisation",
        config=dict(
            policy="softmax_linear",
            num_streams=20,
            num_updates=1,
            baseline="time",
            step_sizes="parameter",
        ),
        hyper=dict(step_size=200.0, discount=1.0, gae_lambda=1.0, learning_rate=0.03),
        plan=training.Config(meta_updates=300, num_tasks=20),
    ),
    # Without much entropy a policy learns only what most languages have in common, because it never
    # finds out whether other proposals are right. A name that recurs must be looked up in memory,
    # which recurrent memories learn far more slowly.
    "rl2-translation": _memory(
        "translation",
        dict(kinds=("months", "days"), max_length=11, horizon=11, sound_laws=5, num_names=3),
        dict(
            memory="transformer",
            memory_size=64,
            encoder_sizes=(128,),
            num_epochs=2,
            num_episodes=10,
        ),
        dict(learning_rate=1e-3, entropy_cost=0.5, discount=0.0),
        600,
        64,
    ),
}
"""Experiments by name: an algorithm (or a variant) and a family. No figures are measured for
bandits of more than five arms or 100 pulls, for three kinds of dependent bandits, for random
MDPs with a GRU, and for VariBAD as published: they are for accelerators."""


types.document_fields()
