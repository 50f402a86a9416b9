"""One meta-update of every algorithm gives the numbers that it gave in version 0.1.

The values are those of the code before it moved into packages, in float64. RL² and VariBAD were measured after rewards
got units of their own, shortly before the move; what learns in context or by replay when it was new, and PEARL again when
it drew no transition of a context twice; all others go back further. A change that means to change numbers
measures them again and says so; any other change must leave them.
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxmeta import datasets, tasks
from jaxmeta.algorithms import ALGORITHMS

SMALL = dict(
    num_streams=10,
    hidden_sizes=(6,),
    baseline="time",
    num_agents=2,
    lifespan=4,
    num_predictions=4,
    memory_size=4,
)
NAVIGATION = ("navigation", dict(horizon=5))
POINT = ("half_circle", dict(horizon=5))
TABULAR = ("tabular", dict(num_states=3, num_actions=2, horizon=6))
ROOM = ("dark_room", dict(size=3, horizon=4))
BANDIT = ("bernoulli_bandit", dict(num_arms=3, num_pulls=6))
VALUES = {
    "algorithm_distillation": (
        ROOM,
        dict(num_episodes=2, memory="gru"),
        {
            "norm": 6.553055779262987,
            "sum": -1.4643472983962205,
            "moved": 0.01561072278929212,
            "loss": 1.6097143171216004,
            "meta_grad_norm": 0.3242715827770947,
        },
    ),
    "decision_pretrained": (
        ROOM,
        dict(num_episodes=2, memory="gru"),
        {
            "norm": 6.552247962328505,
            "sum": -1.4609661693553393,
            "moved": 0.017690710745852312,
            "loss": 1.6101068824489466,
            "meta_grad_norm": 0.361402178284001,
        },
    ),
    "dream": (
        TABULAR,
        dict(num_streams=2, latent_size=3, num_minibatches=2),
        {
            "norm": 16.233403494411306,
            "sum": 16.405986028298134,
            "moved": 0.4413803324990095,
            "return/after": 7.04069470171031,
            "information_gain": 0.002027457563475695,
            "decoder_loss": 0.11954557371846898,
            "value_loss/exploiter": 1.2457016907925973,
            "meta_grad_norm": 3.245323277665561,
        },
    ),
    "maml": (
        NAVIGATION,
        dict(num_updates=2, sampling_correction="score", inner_surrogate="score"),
        {
            "norm": 2.093590308206124,
            "sum": -1.7924508236254575,
            "moved": 0.029150033544676254,
            "return/before": -0.6828997594000841,
            "return/after": -0.5881204737629706,
            "meta_grad_norm": 0.3071822001209716,
        },
    ),
    "promp": (
        NAVIGATION,
        dict(num_epochs=2),
        {
            "norm": 2.1108506857988236,
            "sum": -1.7821480400477223,
            "moved": 0.054283150441996976,
            "return/before": -0.6828997594000841,
            "return/after": -0.6219020169531304,
            "meta_grad_norm": 0.11061364197078313,
        },
    ),
    "maml_trpo": (
        NAVIGATION,
        {},
        {
            "norm": 2.101726332343072,
            "sum": -1.50571089257312,
            "moved": 0.236945048881552,
            "return/before": -0.6828997594000841,
            "return/after": -0.6219020169531304,
            "meta_grad_norm": 0.11072104615054079,
        },
    ),
    "reptile": (
        NAVIGATION,
        {},
        {
            "norm": 2.0874810658593996,
            "sum": -1.7402577945196978,
            "moved": 0.05236308370802705,
            "return/before": -0.6084085380529833,
            "return/after": -0.6966262200874149,
            "meta_grad_norm": 0.17454361236009022,
        },
    ),
    "imaml": (
        NAVIGATION,
        {},
        {
            "norm": 2.0951207997136425,
            "sum": -1.7925041930795034,
            "moved": 0.029140392966848838,
            "return/before": -0.6828997594000841,
            "return/after": -0.6483232350497687,
            "meta_grad_norm": 0.1179253438501293,
        },
    ),
    "es": (
        NAVIGATION,
        dict(population_size=4),
        {
            "norm": 1.7923934148518095,
            "sum": 1.13205666663908,
            "moved": 0.11661903744087351,
            "return/before": -0.6079650818875442,
            "return/after": -0.7990994045798365,
        },
    ),
    "meta_actor_critic": (
        TABULAR,
        {},
        {
            "norm": 3.46106861967491,
            "sum": 0.9235707758632217,
            "moved": 0.02491986259409894,
            "return/before": 5.842015096809803,
            "return/after": 7.973499272399439,
            "meta_grad_norm": 1.4439790098485308,
        },
    ),
    "meta_q": (
        TABULAR,
        {},
        {
            "norm": 2.8694438198548866,
            "sum": 3.3218922723034883,
            "moved": 0.018493238279195533,
            "return/before": 5.112798637259543,
            "return/after": 9.135383257838951,
            "meta_grad_norm": 3.822933950760207,
        },
    ),
    "meta_value": (
        TABULAR,
        {},
        {
            "norm": 2.650300507159963,
            "sum": 2.6738785947647683,
            "moved": 0.016703292436305146,
            "error/0": 14.67981927570712,
            "error/3": 13.724225765099629,
            "meta_grad_norm": 11.153353392975147,
        },
    ),
    "meta_gradient": (
        TABULAR,
        {},
        {
            "norm": 5.44373549711564,
            "sum": 7.519558829301874,
            "moved": 0.014142135623133385,
            "return/after": 6.32355347224823,
            "learned/discount": 0.9899005133444487,
            "meta_grad_norm": 6.842869310457244e-05,
        },
    ),
    "learned_objective": (
        TABULAR,
        dict(num_updates=2),
        {
            "norm": 7.1390064270429985,
            "sum": -4.95766391196146,
            "moved": 0.017244367495151444,
            "reward/step": 1.1579149735555845,
            "meta_grad_norm": 0.02545759705804568,
        },
    ),
    "pearl": (
        POINT,
        dict(
            num_streams=2,
            num_episodes=2,
            num_training_tasks=4,
            replay_steps=40,
            gradient_steps=4,
            encoder_sizes=(6,),
        ),
        {
            "norm": 7.285480801543636,
            "sum": 15.40508232416104,
            "moved": 0.06310204530910456,
            "return/trial": -10.662880856196224,
            "value_loss": 0.4092764936072679,
            "policy_loss": -0.05059307186615131,
            "belief_kl": 8.506763490232995,
            "meta_grad_norm": 1.3841555865468762,
        },
    ),
    "recurrent_sac": (
        POINT,
        dict(num_streams=2, num_episodes=2, replay_trials=8, replayed_trials=2, gradient_steps=4),
        {
            "norm": 9.820942119083856,
            "sum": -10.04487498025015,
            "moved": 0.06126143685654376,
            "return/trial": -9.331052876675352,
            "value_loss": 0.33207877083512743,
            "policy_loss": -0.05249220405150666,
            "entropy": 1.3693150811794352,
            "meta_grad_norm": 0.29577068381934823,
        },
    ),
    "recurrent_q": (
        BANDIT,
        dict(num_streams=2, replay_trials=8, replayed_trials=2),
        {
            "norm": 5.974084515516487,
            "sum": 5.929948467569112,
            "moved": 0.006987367804330115,
            "return/trial": 4.0,
            "value_loss": 0.6098365332761553,
            "meta_grad_norm": 0.7299216225374261,
        },
    ),
    "rl2": (
        BANDIT,
        dict(num_streams=2),
        {
            "norm": 6.077571419021512,
            "sum": 0.41512779027947366,
            "moved": 0.14721158481535432,
            "return/trial": 4.0,
            "value_loss": 1.4587365108190662,
            "meta_grad_norm": 2.1660751634083,
        },
    ),
    "varibad": (
        BANDIT,
        dict(num_streams=2),
        {
            "norm": 8.230446131744452,
            "sum": -4.168586957518897,
            "moved": 0.2354465034844745,
            "value_loss": 0.8022394631058011,
            "error/rewards": 0.1422561008911118,
            "meta_grad_norm": 7.142812410119842,
        },
    ),
}
"""Family, settings, and what a step gives: metrics by name; of all parameters after it their ``norm`` and ``sum``, and
how far they ``moved``."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_meta_update_gives_the_numbers_of_before(x64, name):
    (family_name, family_settings), settings, expected = VALUES[name]
    module = ALGORITHMS[name]
    known = {field.name for field in dataclasses.fields(module.Config)}
    config = module.Config(**{k: v for k, v in SMALL.items() if k in known} | settings)
    family = tasks.make(family_name, **family_settings)
    algorithm = getattr(module, name)(family, config)
    drawn = tasks.sample_tasks(jax.random.key(1), family, 2, split="train")
    batch = drawn
    if name == "algorithm_distillation":
        lived = datasets.mixtures(
            jax.random.key(3), drawn, family=family, num_streams=1, num_episodes=2
        )
        batch = jax.tree.map(lambda x: x[:, 0], lived.data)
    before = algorithm.init(jax.random.key(0))
    after, metrics = jax.jit(algorithm.step)(jax.random.key(2), before, batch)
    theta, moved = (jax.flatten_util.ravel_pytree(x.meta.params)[0] for x in (before, after))
    given = metrics | {
        "norm": np.linalg.norm(moved),
        "sum": moved.sum(),
        "moved": np.linalg.norm(moved - theta),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(given[key], value, rtol=1e-5, err_msg=key)
