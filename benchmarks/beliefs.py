"""Which parts make VariBAD good on GridNavi? Its best variant here, and variants without its parts.

    python benchmarks/beliefs.py
    python benchmarks/beliefs.py --variants best "without the hypernetwork" --num-seeds 1

The best variant, the preset `varibad-gridnavi-quick`, has a hypernetwork head, a latent of 32 numbers, a divergence that weighs 30
times as much as in the paper, the published decoder, and PPO's gradient in the encoder. The first variants leave one of them out.
The last three leave out several: in the paper the latent is small, and PPO sends no gradient into the encoder.

A score is the return of a held-out trial of four episodes, as a share of the Bayes-optimal agent's, which is computed exactly. All
variants act in as many trials. The interval is over tasks. Each variant is kept in parts/*.json as soon as it is measured;
`--resume` keeps those that are there.
"""

import dataclasses
import time
from functools import partial
from typing import Annotated, Any

import jax
import numpy as np
import study

from jaxmeta import evaluation, references, tasks
from jaxmeta.algorithms.varibad import Config, Hyper, varibad
from jaxmeta.runs import presets, reports

BEST = presets.PRESETS["varibad-gridnavi-quick"]
EPISODES = BEST.config["num_episodes"]


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings that differ from the preset, the best variant."""

    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    hyper: dict[str, float] = dataclasses.field(default_factory=dict)


PLAIN = dict(head="plain", policy_sizes=None)
STOPPED = dict(latent_size=8, end_to_end=False)
KEPT = dict(replay_trials=4096, replayed_trials=32, belief_steps=16)
VARIANTS = {
    "best": Variant(),
    "without the larger latent": Variant(dict(latent_size=8)),
    "without the policy gradient in the encoder": Variant(dict(end_to_end=False)),
    "without the hypernetwork": Variant(PLAIN),
    "without the heavier divergence": Variant({}, dict(kl_cost=0.01)),
    "without the published decoder": Variant(
        dict(decoder_sizes=(32,), reward_decoder="transition", reward_error="squared"),
        dict(reward_cost=10.0, kl_cost=3.0),
    ),
    "without latent and gradient": Variant(STOPPED),
    "without latent, gradient and hypernetwork": Variant(STOPPED | PLAIN),
    "without latent and gradient, two optimisers": Variant(
        STOPPED | KEPT, dict(belief_learning_rate=3e-3)
    ),
}
"""The latent is of 32 numbers, or of 8. The weight of the divergence is 0.3 of the weight of rewards, or 0.01, as in the paper. Two
optimisers: the belief learns from kept trials."""


class Beliefs(study.Study):
    """Variants of VariBAD on GridNavi."""

    resume: bool = False  # Keep the variants that are in the folder and measure the others.
    variants: Annotated[study.Names, study.known(VARIANTS)] = tuple(VARIANTS)
    num_seeds: int = 3  # Seeds, trained as one program.
    meta_updates: int = BEST.plan.meta_updates
    """Meta-updates; step sizes and entropies are annealed in as many."""
    num_tasks: Annotated[int, study.multiple_of(4)] = BEST.plan.num_tasks
    """Trials in a meta-update."""
    eval_tasks: int = 1000  # Held-out tasks.


def measure(told: Beliefs, name: str) -> dict[str, Any]:
    """Returns of held-out trials after training, ``[S, M]``, and the returns of the trials in training, ``[S, U]``."""
    family, variant = tasks.make("gridnavi"), VARIANTS[name]
    experiment = presets.lasting(BEST, told.meta_updates)
    hyper = Hyper(**{**experiment.hyper, **variant.hyper})
    algorithm = varibad(family, Config(**{**experiment.config, **variant.config}), hyper)
    drawn = study.held_out(family, told.eval_tasks)
    runs = study.seeds(algorithm, told.num_seeds)
    chunk = min(told.meta_updates, 50)
    train, _ = study.trainer(runs, algorithm, family, num_tasks=told.num_tasks, chunk=chunk)
    began = time.process_time()

    def show(done: int, metrics: dict, spent: float) -> None:
        study.say(f"{name}: {done} meta-updates, {metrics['return/trial'].mean(axis=1)}")

    trained = train(runs, told.meta_updates, show)
    spent = time.process_time() - began

    @jax.jit
    def look(meta: Any) -> jax.Array:
        key = jax.random.key(study.EVALUATION_SEED + 1)
        how = dict(learner=algorithm.learner, env=family.env)
        trials = evaluation.trials(key, meta, drawn, num_steps=EPISODES * family.horizon, **how)
        return evaluation.episode_returns(trials, EPISODES).sum(axis=1)

    returns = np.asarray(jax.lax.map(look, trained.meta))
    study.say(f"{name}: {spent:.0f} s, {returns.mean(axis=1)}")
    return {
        "returns": returns.tolist(),
        "training_returns": np.asarray(trained.curve["return/trial"]).tolist(),
        "divergence": np.asarray(trained.curve["belief_kl"])[:, -1].tolist(),
        "env_steps": told.meta_updates * int(np.ravel(trained.curve["env_steps"])[0]),
        "cpu_seconds": spent / told.num_seeds,
        "machine": reports.machine(),
    }


def main(told: Beliefs) -> None:
    settings = told.told("output", "resume", "variants")
    best = references.bayes_optimal_gridnavi(num_episodes=EPISODES, num_steps=15)
    table, parts = [], {}
    for name in told.variants:
        path = told.output / "parts" / f"{name}.json"
        part = study.kept(path, settings, partial(measure, told, name))
        scores = np.asarray(part["returns"], float) / best
        mean, interval = scores.mean(), evaluation.bootstrap_interval(scores.mean(axis=0))
        table.append(
            {
                "VariBAD": name,
                "share of Bayes-optimal (95 %)": study.with_interval(mean, *interval, digits=3),
                "each seed": ", ".join(f"{x:.3f}" for x in scores.mean(axis=1)),
                "divergence of a trial, nats": f"{np.mean(part['divergence']):.0f}",
                "environment steps": study.spaced(part["env_steps"]),
                "training, CPU s": f"{part['cpu_seconds']:.0f}",
            }
        )
        parts[name] = part
    study.leave(told, table, csv=table, parts=parts)


if __name__ == "__main__":
    study.main({Beliefs: main}, __doc__)
