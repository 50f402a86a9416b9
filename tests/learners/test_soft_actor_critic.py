import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmeta.learners import soft_actor_critic as module
from jaxmeta.learners.soft_actor_critic import Learned

Q = np.array([[0.5, -1.0, 2.0], [0.2, 3.0, 1.0]])
LOG_PROB = np.array([-1.0, 0.3, -0.2])
COUNTED = np.array([True, True, False])


def test_losses_are_those_of_the_paper():
    """Three steps by hand, of which two count."""
    least = np.array([0.2, -1.0, 1.0])
    v = least - 0.5 * LOG_PROB
    np.testing.assert_allclose(module.soft_value(jnp.asarray(Q), LOG_PROB, 0.5), v, rtol=1e-6)
    reward, discount = np.array([1.0, 2.0, 3.0]), np.array([0.9, 0.0, 0.9])
    scale = jnp.array([0.5, 2.0])
    y = module.soft_target(jnp.asarray(reward), jnp.asarray(discount), jnp.asarray(v), scale)
    np.testing.assert_allclose(y, (reward + discount * v - 0.5) / 2, rtol=1e-6)
    error = ((Q[0] - y) ** 2 + (Q[1] - y) ** 2)[:2]
    counted = jnp.asarray(COUNTED)
    loss = module.critic_loss(jnp.asarray(Q), y, counted)
    np.testing.assert_allclose(loss, 0.5 * error.mean(), rtol=1e-6)
    loss = module.actor_loss(jnp.asarray(LOG_PROB), jnp.asarray(Q), jnp.asarray(0.5), counted)
    np.testing.assert_allclose(loss, (0.5 * LOG_PROB - least)[:2].mean(), rtol=1e-6)
    loss = module.temperature_loss(jnp.log(0.5), jnp.asarray(LOG_PROB), -2.0, counted)
    np.testing.assert_allclose(loss, (-0.5 * (LOG_PROB - 2.0))[:2].mean(), rtol=1e-6)
    # Of the two steps that count, the first was better than the policy's own draw.
    drawn = Q + np.array([[-1.0, 1.0, 0.0], [0.5, 1.0, 0.0]])
    loss = module.cloning_loss(jnp.asarray(LOG_PROB), jnp.asarray(Q), jnp.asarray(drawn), counted)
    np.testing.assert_allclose(loss, -LOG_PROB[0] / 2, rtol=1e-6)
    nothing = jnp.zeros(3, bool)
    assert module.mean_where(jnp.ones(3), nothing) == 0


def test_each_loss_moves_its_own_part_alone():
    counted = jnp.asarray(COUNTED)
    q, log_prob = jnp.asarray(Q), jnp.asarray(LOG_PROB)
    by_target = jax.grad(module.critic_loss, 1)(q, log_prob, counted)
    np.testing.assert_array_equal(by_target, jnp.zeros(3))
    assert jax.grad(module.actor_loss, 2)(log_prob, q, jnp.asarray(0.5), counted) == 0
    by_q = jax.grad(lambda q: module.cloning_loss(log_prob, q, 0.5 * q, counted))(q)
    np.testing.assert_array_equal(by_q, jnp.zeros((2, 3)))
    by_log_prob = jax.grad(module.temperature_loss, 1)(jnp.asarray(0.0), log_prob, 1.0, counted)
    np.testing.assert_array_equal(by_log_prob, jnp.zeros(3))


def test_the_temperature_rises_while_entropy_is_missing():
    """Down its gradient: entropies of 1 and -0.3 are more than -1, in the mean, and less than 1."""
    counted = jnp.asarray(COUNTED)
    for target, sign in ((-1.0, 1), (1.0, -1)):
        gradient = jax.grad(module.temperature_loss)(
            jnp.asarray(0.0), jnp.asarray(LOG_PROB), target, counted
        )
        assert np.sign(gradient) == sign


class Drawn(dict):
    """A batch with a mask."""

    counted = property(lambda self: self["counted"])


jax.tree_util.register_pytree_node(
    Drawn, lambda x: (list(x.values()), list(x)), lambda names, x: Drawn(zip(names, x, strict=True))
)


def quadratic(params, target, key, batch):
    """The loss moves the critic towards what the batch holds, and everything else stays."""
    del key
    loss = 0.5 * (params["critic"] - batch["x"]) ** 2
    return loss, {"target": target}


def learned(apply=True, goal=1.0, counted=True, target=0.0):
    start = {"critic": jnp.asarray(0.0), "other": jnp.asarray(7.0)}
    optimizer = optax.sgd(0.5)
    return functools.partial(
        module.learn_from_replay,
        jax.random.key(0),
        Learned(start, jnp.asarray(target), optimizer.init(start)),
        lambda key: Drawn(x=jnp.asarray(goal), counted=jnp.asarray([counted])),
        losses=quadratic,
        optimizer=optimizer,
        target_rate=0.25,
        num_steps=3,
        apply=jnp.asarray(apply),
    )()


def test_the_target_follows_the_critic_after_each_step():
    """Critic: 1/2, 3/4, 7/8. Target: 1/8, then 1/8 + 1/4 (3/4 - 1/8), and so on; losses see the one before."""
    after, reports, applied = learned()
    target, critic, seen = 0.0, 0.0, []
    for _ in range(3):
        seen.append(target)
        critic += 0.5 * (1 - critic)
        target += 0.25 * (critic - target)
    assert after.params == {"critic": 0.875, "other": 7.0}
    np.testing.assert_allclose(after.target, target, rtol=1e-6)
    np.testing.assert_allclose(reports["target"], seen, rtol=1e-6)
    assert applied.tolist() == [True] * 3


def test_a_step_that_must_not_be_taken_changes_nothing():
    for case in (dict(apply=False), dict(goal=jnp.nan), dict(counted=False)):
        after, _, applied = learned(**case, target=3.0)
        assert after.params == {"critic": 0.0, "other": 7.0}
        assert after.target == 3.0
        assert not jnp.any(applied)


def test_each_step_draws_its_own_batch():
    drawn = []
    optimizer = optax.sgd(0.0)
    start = {"critic": jnp.asarray(0.0)}
    _, reports, _ = module.learn_from_replay(
        jax.random.key(0),
        Learned(start, jnp.asarray(0.0), optimizer.init(start)),
        lambda key: Drawn(x=jax.random.normal(key), counted=jnp.ones(1, bool)),
        losses=lambda params, target, key, batch: (params["critic"], {"x": batch["x"]}),
        optimizer=optimizer,
        target_rate=0.5,
        num_steps=4,
        apply=jnp.asarray(True),
    )
    drawn = reports["x"].tolist()
    assert len(set(drawn)) == 4
