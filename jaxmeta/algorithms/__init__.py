r"""Meta-learning algorithms, one a file, with their variants.

# Gradient-based

| algorithm | how | source |
|---|---|---|
| MAML, first order or second, K inner steps | `maml`, `Config(first_order=..., num_updates=K)` | Finn et al. 2017 |
| E-MAML | `maml`, `Config(inner_surrogate="score", sampling_correction="score")` | Stadie et al. 2018 |
| E-MAML with leave-one-out baselines | `maml`, `Config(inner_surrogate="score", sampling_correction="leave_one_out")` | here |
| Meta-SGD | `maml`, `Config(step_sizes="parameter")` | Li et al. 2017 |
| ANIL | `maml`, `Config(adapts="head")` | Raghu et al. 2020 |
| CAVIA | `maml`, `Config(adapts="context", context_size=8)` | Zintgraf et al. 2019 |
| ProMP | `promp` | Rothfuss et al. 2019 |
| MAML-TRPO | `maml_trpo` | Finn et al. 2017, section 5.3 |
| Reptile | `reptile` | Nichol et al. 2018 |
| implicit MAML | `imaml` | Rajeswaran et al. 2019 |
| evolution strategies on the adapted return | `es`, through evosax | Song et al. 2020 |

The tests list every lifetime of small MDPs in float64 and compare the expected meta-gradient with the derivative of what
the agent earns after a step on N streams: E-MAML in both forms is unbiased to 1e-12 for 1, 2 and 5 streams (with `gae_lambda=1`).
Everything that leaves the sampling out is biased for N streams, `dice` included, whose error falls like 1/N: `estimators.surrogates`
has a table of which settings to take when. ProMP, MAML-TRPO, Reptile, iMAML and ES are compared with their papers' formulas
written out.

# Learners with memory

A trial is several episodes in one task. These learners learn a task in the state of a recurrent network. RL² (`rl2`; Duan et al.
2016, Wang et al. 2016) is trained by PPO or A2C. VariBAD (`varibad`; Zintgraf et al. 2020) acts on a belief, which is trained to
predict rewards and successors, beside the policy or, with `Config(replay_trials=4096)`, from old trials. Recurrent Q (`recurrent_q`; PQN, Gallici et al. 2024) learns action values by λ-returns, from new trials alone
or also from old ones: `Config(replay_trials=4096)`, which needs flashbax. Recurrent SAC (`recurrent_sac`; Ni et al. 2022, Haarnoja et
al. 2018) learns continuous actions from old trials, and needs flashbax. All take the network as an object of `networks.recurrent`: `memory=gru(64)`, `lstm(64)`,
`linear_recurrence(64)`, `transformer(64, context=...)`, or for RL², recurrent Q and SAC `feed_forward(64)`, the control without memory. RL² also takes
its loss, `loss=learners.trial_gradients.a2c`, or a whole policy, `network=graph_actor_critic(family)`. Presets and the command line
name them: `Config(memory="lstm", memory_size=64)`. A setting that has no effect is an error.

PEARL (`pearl`; Rakelly et al. 2019) has no recurrent network: it draws a latent variable from a posterior given all transitions of
earlier episodes, holds it fixed for an episode, and acts by soft actor-critic given it. It learns off-policy, from the steps kept of
a fixed set of training tasks.

To explore may cost more in an episode than it brings before the trial ends. Then it takes one of these:

| algorithm | how | source |
|---|---|---|
| E-RL² | `rl2` or `varibad`, `Config(num_episodes=2, explore_episodes=1)`: rewards of the first episode count 0 | Stadie et al. 2018 |
| HyperX | `varibad`, `Config(bonuses=("novelty", "error"))`: bonuses pay the policy for new states and for surprising transitions | Zintgraf et al. 2021 |
| DREAM | `dream`: one policy is paid for information about the task, another exploits it; tasks are known in training | Liu et al. 2021 |

# Learners in context, by prediction

These learners, too, have all that they know of a task in a recurrent network, but they are trained to predict actions: that
is supervised learning. Rewards are inputs, and nothing is learned from their sum. At test time they act as RL² does.

| algorithm | predicts | from | source |
|---|---|---|---|
| algorithm distillation | what another learner did next | its histories: `datasets.record`, `datasets.mixtures`, `datasets.windows` | Laskin et al. 2023, Zisman et al. 2024 |
| decision-pretrained networks (DPT) | the best action of the task, which is known in training | contexts that it collects itself | Lee et al. 2023 |

`algorithm_distillation` takes windows of a dataset: `training.train(..., source=datasets.windows(histories, 80))`.

# Meta-learned values, and agents that learn how to learn

| algorithm | what is learned | how | source |
|---|---|---|---|
| meta-learned value | where V_w begins and its step sizes, so that it predicts the return of a policy π in a new task after a few steps on another policy's experience; V-trace(λ, ρ̄, c̄), per-decision or weighted importance sampling, TD(λ); semi- or residual gradients | `meta_value` | Finn et al. 2017 on Sutton 1988, Precup et al. 2000, Espeholt et al. 2018 |
| meta actor-critic | policy and value, adapted together on the last batches of experience | `meta_actor_critic` | the same |
| meta-learned action values | Q_w, adapted by Retrace(λ) or tree-backup; acts by its softmax | `meta_q` | Munos et al. 2016 |
| meta-gradients | γ, λ, costs and step size of agents that live on | `meta_gradient` | Xu et al. 2018, Zahavy et al. 2020 |
| with a baseline of derivatives | as meta-gradients, with less noise in γ's | `meta_gradient`, `Config(leave_one_out=True)` | here |
| LIRPG | a reward that is added to the task's | `meta_gradient`, `Config(intrinsic_reward=True, outer_value=True)` | Zheng et al. 2018 |
| bootstrapped meta-gradients | as meta-gradients | `meta_gradient`, `Config(outer="bootstrap")` | Flennerhag et al. 2022 |
| debiased by an outer value | as meta-gradients | `meta_gradient`, `Config(outer_value=True)` | Bonnet et al. 2022 |
| LPG, LPO | the update rule; the drift function | `learned_objective`, `Config(objective="lpg")`, by meta-gradients, ES or persistent ES (`outer`); or objects, your own too: `rule=lpg(memory_size=8)`, `estimator=persistent_evolution_strategy` | Oh et al. 2020, Lu et al. 2022, Vicol et al. 2021 |
"""

from types import ModuleType

from jaxmeta import types
from jaxmeta.algorithms import (
    algorithm_distillation,
    decision_pretrained,
    dream,
    es,
    imaml,
    learned_objective,
    maml,
    maml_trpo,
    meta_actor_critic,
    meta_gradient,
    meta_q,
    meta_value,
    pearl,
    promp,
    recurrent_q,
    recurrent_sac,
    reptile,
    rl2,
    varibad,
)

ALGORITHMS: dict[str, ModuleType] = {
    "algorithm_distillation": algorithm_distillation,
    "decision_pretrained": decision_pretrained,
    "dream": dream,
    "es": es,
    "imaml": imaml,
    "learned_objective": learned_objective,
    "maml": maml,
    "maml_trpo": maml_trpo,
    "meta_actor_critic": meta_actor_critic,
    "meta_gradient": meta_gradient,
    "meta_q": meta_q,
    "meta_value": meta_value,
    "pearl": pearl,
    "promp": promp,
    "recurrent_q": recurrent_q,
    "recurrent_sac": recurrent_sac,
    "reptile": reptile,
    "rl2": rl2,
    "varibad": varibad,
}
"""Modules by name: each has ``Config``, ``Hyper`` and a constructor of the module's own name."""

__all__ = [
    "ALGORITHMS",
    "algorithm_distillation",
    "decision_pretrained",
    "dream",
    "es",
    "imaml",
    "learned_objective",
    "maml",
    "maml_trpo",
    "meta_actor_critic",
    "meta_gradient",
    "meta_q",
    "meta_value",
    "pearl",
    "promp",
    "recurrent_q",
    "recurrent_sac",
    "reptile",
    "rl2",
    "varibad",
]

types.document_fields()
