"""Small faults that the fast tests must catch, and the program that plants them.

    python tests/mutants.py                 # every fault, in copies of the project
    python tests/mutants.py learners maml   # the faults of files whose name holds one of these words

A fault changes a few characters of one file. It is the kind of fault that this field makes in silence: a mask, a
reset, a key, a sign, a stop_gradient, a discount, a normalisation, an axis, a round. The program plants each fault in
a copy of the project, runs the fast tests of the faulty file, and prints whether a test failed (caught) or all
passed (survived). It ends with the number of faults that survived and have no reason.
"""

import argparse
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Mutant(NamedTuple):
    """A fault in one file."""

    file: str
    """The file, below ``jaxmeta``."""
    old: str
    """The text that is replaced; the file holds it once."""
    new: str
    """The faulty text."""
    tests: str = ""
    """The tests that are run, below ``tests``; empty is the tests of the file."""
    reason: str = ""
    """Why no fast test catches it; empty for a fault that must be caught."""

    def test_paths(self) -> list[str]:
        """The tests that are run, from the project's root."""
        if self.tests:
            return [f"tests/{name}" for name in self.tests.split()]
        folder, _, name = self.file.rpartition("/")
        return [str(Path("tests", folder, f"test_{name}"))]


# fmt: off
MUTANTS = (
    # Observations of several parts, several choices, environments of two functions
    Mutant("tasks/composite.py", "for name in sorted(space.spaces)]", "for name in space.spaces]"),
    Mutant("tasks/composite.py", "start += size", "start += 1"),
    Mutant("tasks/functions.py", "jax.random.randint(key, (), 0, size)", "jax.random.randint(key, (), 0, size - 1)"),
    Mutant("networks/distributions.py", "self.low + Categorical(self.logits).sample(key)", "Categorical(self.logits).sample(key)"),
    Mutant("networks/distributions.py", "- jnp.sum(self._log_slope(u), axis=-1)", "+ jnp.sum(self._log_slope(u), axis=-1)"),
    Mutant("networks/encodings.py", "action[:, i] - int(low)", "action[:, i]"),
    Mutant("tasks/transform/observations.py", "if i not in numbers", "if i in numbers"),
    # Histories, windows, learners in context
    Mutant("datasets/histories.py", "past < random_steps, 1.0 - past", "past < random_steps, past"),
    Mutant("datasets/histories.py", "lambda x: jnp.moveaxis(x, 0, 1)", "lambda x: x"),
    Mutant("datasets/histories.py", "reward=jnp.where(data.timestep.first, before(data.reward), reward)", "reward=reward"),
    Mutant("datasets/windows.py", "steps <= lengths[m, n] - length", "steps <= steps[-1] + 1 - length"),
    Mutant("datasets/windows.py", "(), 0, lengths.shape[1])", "(), 0, lengths.shape[0])"),
    Mutant("datasets/windows.py", "default_rng([seed, a_pass])", "default_rng([seed])"),
    Mutant("datasets/files.py", "if _sha(part) != self.shards[shard][name]:", "if False:"),
    Mutant("datasets/files.py", "*lines, broken = text.split", "*lines, broken = (text + chr(10)).split"),
    Mutant("datasets/quality.py", "np.split(np.arange(end), np.flatnonzero(first[:end])[1:])", "np.split(np.arange(len(first)), np.flatnonzero(first)[1:])"),
    Mutant("learners/minibatches.py", "Counts(at_least_one(batch.counted),", "Counts(jnp.asarray(batch.counted.size, jnp.int32),"),
    Mutant("learners/in_context.py", "loss = -jnp.sum(log_prob) / number", "loss = jnp.sum(log_prob) / number"),
    Mutant("learners/in_context.py", "scale = running_reward_scale(meta.reward_scale, data.reward, counted)", "scale = jnp.ones(())", "algorithms/test_algorithm_distillation.py"),
    Mutant("networks/policies.py", "return distribution.mode(), jnp.zeros(()), memory", "return distribution.sample(key), jnp.zeros(()), memory", "learners/test_in_context.py"),
    Mutant("algorithms/algorithm_distillation.py", "in_context.predictable(data.action, counted, family)", "in_context.predictable(data.timestep.action, counted, family)"),
    Mutant("algorithms/decision_pretrained.py", "jnp.repeat(x, config.num_streams, axis=0)", "jnp.tile(x, (config.num_streams, *[1] * (x.ndim - 1)))"),
    Mutant("algorithms/decision_pretrained.py", "jnp.where(at_random, other, action)", "jnp.where(at_random, action, other)"),
    Mutant("runs/training.py", "if not begin <= update < end:", "if data is None:", "datasets/test_windows.py"),
    # Curricula
    Mutant("curricula/scores.py", "jnp.cumsum(results.reward, axis=-1) - results.reward", "jnp.cumsum(results.reward, axis=-1)"),
    Mutant("curricula/scores.py", "jnp.maximum(results.advantage, 0.0)", "jnp.abs(results.advantage)"),
    Mutant("curricula/scores.py", "return _mean_step(jnp.abs(results.advantage), results.counted)", "return _mean_step(results.advantage, results.counted)"),
    Mutant("curricula/scores.py", "axis=1, where=~jnp.isnan(flat))", "axis=1)"),
    Mutant("curricula/levels.py", "jnp.argsort(-score, stable=True)\n    rank", "jnp.argsort(score, stable=True)\n    rank"),
    Mutant("curricula/levels.py", "-jnp.log(rank) / temperature", "-jnp.log(rank) * temperature"),
    Mutant("curricula/levels.py", "jnp.log1p(-how.staleness) + log_rank", "jnp.log(how.staleness) + log_rank"),
    Mutant("curricula/levels.py", "log_p + jax.random.gumbel(key, log_p.shape, log_p.dtype)", "log_p + jax.random.uniform(key, log_p.shape, log_p.dtype)"),
    Mutant("curricula/levels.py", "levels.best.at[at].max(best", "levels.best.at[at].set(best"),
    Mutant("curricula/levels.py", "score[candidates] > levels.score[places]", "score[candidates] > -jnp.inf"),
    Mutant("curricula/levels.py", "known = which & ~jnp.isnan(score)", "known = which"),
    Mutant("curricula/replay.py", "ready = share >= config.fill", "ready = share >= 0"),
    Mutant("curricula/replay.py", "learns = info.replayed | config.learns_from_new", "learns = ~info.replayed | config.learns_from_new"),
    Mutant("curricula/replay.py", "order = jnp.cumsum(replays) - 1", "order = jnp.cumsum(replays)"),
    Mutant("curricula/replay.py", "~replayed, score, best, config.priorities", "replayed, score, best, config.priorities"),
    Mutant("curricula/replay.py", "(share if config.anneals else", "(share if not config.anneals else"),
    Mutant("curricula/edits.py", "replayed &= ~state.replayed", "replayed &= state.replayed"),
    Mutant("curricula/edits.py", "(key, config.num_edits)", "(key, 1)"),
    Mutant("curricula/edits.py", "jnp.argsort(~which, stable=True)", "jnp.argsort(which, stable=True)"),
    Mutant("curricula/edits.py", "dtype=jnp.int32) + size - 1) // size", "dtype=jnp.int32) + size - 1) // (2 * size)"),
    Mutant("curricula/edits.py", "state._replace(parents=tasks, replayed=replayed)", "state._replace(parents=new, replayed=replayed)"),
    Mutant("curricula/learnability.py", "state.time % config.every == 0", "state.time % config.every == 1"),
    Mutant("curricula/learnability.py", "scores.learnable(p))", "p)"),
    Mutant("curricula/learnability.py", "< round(config.share * num_tasks)", ">= round(config.share * num_tasks)"),
    Mutant("curricula/tails.py", "share + (1 - share) * density", "share + density"),
    Mutant("curricula/tails.py", "jnp.where(returns <= threshold", "jnp.where(returns >= threshold"),
    Mutant("curricula/tails.py", "jnp.where(row == updates - 1, moved, state.phi)", "moved"),
    Mutant("curricula/tails.py", "x = jnp.where(is_reference[:, None], uniform, tilted)", "x = tilted"),
    Mutant("curricula/meta_update.py", 'metrics["env_steps"] + more["env_steps"]', 'more["env_steps"]'),
    Mutant("curricula/meta_update.py", "if same == [False, True]:", "if same == [False, False]:"),
    Mutant("learners/trial_gradients.py", "trials = jnp.repeat(learns, config.num_streams)", "trials = jnp.tile(learns, config.num_streams)", "learners/test_recurrent.py"),
    Mutant("learners/trial_gradients.py", "mean + spread * (batch.target - batch.advantage)", "mean + spread * batch.target", "learners/test_recurrent.py"),
    Mutant("learners/trial_gradients.py", "*= jnp.any(learns).astype(jnp.int32)", "*= 1", "curricula/test_meta_update.py"),
    Mutant("meta_updates/gradients.py", "masked_mean(gradients, good & learns)", "masked_mean(gradients, good)", "curricula/test_meta_update.py"),
    Mutant("meta_updates/outer_loop.py", "applied &= jnp.any(good & learns)", "applied &= jnp.any(good)", "curricula/test_meta_update.py"),
    Mutant("runs/training.py", "return Run(key, state, run.num_updates + 1, taught), metrics", "return Run(key, state, run.num_updates + 1, run.curriculum), metrics"),
    Mutant("runs/interrupts.py", "return noted[0] if noted else None", "return None"),
    Mutant("tasks/maze.py", "jax.random.bernoulli(coin_key, unsolvable)", "jax.random.bernoulli(key, unsolvable)", "test_key_reuse.py"),
    Mutant("tasks/maze.py", "around & (jnp.arange(task.walls.size) != task.goal)", "around"),
    Mutant("tasks/maze.py", "kept = whole & ~_is_test_maze(changed.walls)", "kept = whole"),
    Mutant("tasks/xland_edits.py", "jnp.where(is_new, new, old), after, parts)", "new, after, parts)"),
    Mutant("tasks/xland_edits.py", "(jnp.arange(len(same)) != HOLD) | (first[1] != GOAL_TILE)", "(jnp.arange(len(same)) >= 0)"),
    Mutant("tasks/xland_edits.py", "spare = (named.objects > 0) & ~jnp.any", "spare = (named.objects > 0) | ~jnp.any"),
    Mutant("tasks/xland_edits.py", "idle = there & ~jnp.any", "idle = there & jnp.any"),
    Mutant("tasks/xland_edits.py", "kind = xp.where(turned, kind - xp.uint32(2), kind)", "kind = kind + xp.uint32(0)"),
    Mutant("tasks/maze.py", "whole = _leads_to_the_goal(changed) & jnp.any(_starts(changed))", "whole = jnp.any(_starts(changed))"),
    Mutant("tasks/tabular.py", "place // num_actions, place % num_actions", "place // num_states, place % num_actions"),
    Mutant("tasks/control.py", "jnp.exp((2 * x - 1) * math.log(scale))", "jnp.exp((x - 1) * math.log(scale))"),
    Mutant("evaluation/tails.py", "np.argsort(ranked_by[good]", "np.argsort(-ranked_by[good]"),
    Mutant("evaluation/tails.py", "np.clip(num - np.arange(len(worst_first)), 0.0, 1.0)", "(np.arange(len(worst_first)) < num)"),
    Mutant("evaluation/tails.py", "+ 0.5 * (ours == theirs)", "+ 1.0 * (ours == theirs)"),
    Mutant("evaluation/protocols.py", "episode = protocol.adaptation + jnp.arange", "episode = jnp.arange"),
    Mutant("evaluation/protocols.py", "num_updates=num_updates, restart=True)", "num_updates=1, restart=True)"),
    # Sessions
    Mutant("deployment/session.py", "last = terminated or truncated or self._age >= self.family.horizon", "last = terminated or truncated"),
    Mutant("deployment/session.py", "np.asarray(1.0 - terminated)", "np.asarray(1.0 - last)"),
    Mutant("deployment/session.py", "self._memories[self._stream] = self._memory", "pass"),
    Mutant("deployment/session.py", "kept[place] = x", "kept[place] = 0 * x"),
    Mutant("deployment/session.py", "keys.at_step(act_key, t)", "act_key"),
    # Recurrences
    Mutant("recurrences.py", "y = a + b * y", "y = b * (a + y)"),
    Mutant("recurrences.py", "solve(a, before(b, not reverse), not reverse)", "solve(a, b, not reverse)"),
    # Conjugate gradients and the line search
    Mutant("meta_updates/conjugate_gradients.py", "error - size * curved", "error + size * curved"),
    Mutant("meta_updates/conjugate_gradients.py", "tree(target - error)", "tree(error)"),
    Mutant("meta_updates/conjugate_gradients.py", "square / before * direction", "direction"),
    Mutant("algorithms/maml_trpo.py", "jnp.asarray(-1, jnp.int32)", "jnp.asarray(0, jnp.int32)"),
    # Returns and advantages
    Mutant("estimators/returns.py", "return reward + discount * v_next - v", "return reward + discount * jax.lax.stop_gradient(v_next) - v"),
    Mutant("estimators/returns.py", "discount * lambda_ * unless(last, delta)", "discount * lambda_"),
    Mutant("estimators/returns.py", "return advantage, v + advantage", "return advantage, advantage"),
    Mutant("estimators/returns.py", "linear_recurrence(reward + discount * cut * v_next,", "linear_recurrence(reward,"),
    Mutant("estimators/returns.py", "now = rho * (reward + discount * cut * v_next)", "now = reward + rho * discount * cut * v_next"),
    Mutant("estimators/returns.py", "counted = follows & good[:, None, None]", "counted = follows", "test_absence.py"),
    Mutant("estimators/returns.py", "discount * c, last=last, lambda_=lambda_)", "discount * jnp.append(c[1:], c[:1]), last=last, lambda_=lambda_)"),
    Mutant("estimators/returns.py", "jnp.minimum(rho, rho_bar) * delta", "delta"),
    Mutant("estimators/returns.py", "c_next = jnp.append(c[1:], jnp.zeros_like(c[:1]))", "c_next = c"),
    # Surrogates
    Mutant("estimators/surrogates.py", "cumulative_discount(discount, first) * delta, goes_on", "delta, goes_on"),
    Mutant("estimators/surrogates.py", "0.0, unless(jnp.roll(first, -1), delta))", "0.0, jnp.ones_like(delta))"),
    Mutant("estimators/surrogates.py", "jnp.exp(u - log_ratio) * jnp.expm1(log_ratio)", "jnp.exp(u) * jnp.expm1(log_ratio)"),
    Mutant("estimators/surrogates.py", "jnp.concatenate([jnp.zeros_like(e[:1]), e[:-1]])", "e"),
    Mutant("estimators/surrogates.py", "return jnp.minimum(ratio * advantage, clipped * advantage)", "return jnp.maximum(ratio * advantage, clipped * advantage)"),
    Mutant("estimators/surrogates.py", "jnp.sum(gain * jnp.sum(log_prob, axis=-1))", "jnp.mean(gain * jnp.sum(log_prob, axis=-1))"),
    Mutant("estimators/surrogates.py", "(jnp.sum(counted) - counted) /", "jnp.sum(counted) /"),
    Mutant("estimators/surrogates.py", "before = linear_recurrence(log_c, keep) - log_c", "before = linear_recurrence(log_c, keep)"),
    Mutant("estimators/surrogates.py", "    return jnp.expm1(log_ratio)\n", "    return log_ratio\n"),
    # Episodes and streams
    Mutant("estimators/episodes.py", "previous = jnp.concatenate([jnp.ones_like(discount[:1]), discount[:-1]])", "previous = discount"),
    Mutant("estimators/episodes.py", "return step <= jnp.min(", "return step < jnp.min("),
    Mutant("estimators/episodes.py", "return jnp.cumsum(ended) - ended", "return jnp.cumsum(ended)"),
    Mutant("estimators/streams.py", "for x in jax.vmap(pack)(data)]), good", "for x in jax.vmap(pack)(data)]), jnp.ones_like(good)"),
    Mutant("estimators/streams.py", "return jnp.mean(x, where=where)", "return jnp.mean(jnp.where(where, x, 0.0))"),
    # Baseline and units
    Mutant("estimators/baselines.py", "others = 1.0 - jnp.eye(features.shape[0], dtype=gram.dtype)", "others = jnp.ones((features.shape[0],) * 2, gram.dtype)"),
    Mutant("estimators/baselines.py", "jnp.where(diagonal > 0, ridge * diagonal, 1.0)", "jnp.where(diagonal > 0, ridge, 1.0)"),
    Mutant("estimators/baselines.py", "axis=1) * unless(data.last, v)", "axis=1)"),
    Mutant("estimators/baselines.py", "jnp.mean(x[:, 0], axis=0, where=counted[:, :1], keepdims=True)[:, None, :]", "jnp.mean(x, axis=(0, 1), where=counted[..., None], keepdims=True)"),
    Mutant("estimators/units.py", "square = jnp.mean(advantage**2, where=counted)", "square = jnp.mean(advantage**2)"),
    Mutant("estimators/units.py", "running(scale, largest, scale > 0), scale)", "largest, scale)"),
    # Rollouts and lifetimes
    Mutant("rollouts/rollout.py", "first=after.last,", "first=jnp.zeros_like(after.last),"),
    Mutant("rollouts/rollout.py", "1.0 - after.terminated.astype", "1.0 - after.last.astype"),
    Mutant("rollouts/rollout.py", "next_obs=after.next_obs,", "next_obs=after.obs,"),
    Mutant("rollouts/rollout.py", "keys.at_step(reset_key, t),", "reset_key,"),
    Mutant("rollouts/rollout.py", "keys.at_step(act_key, t), meta", "act_key, meta"),
    Mutant("rollouts/lifetime.py", "jax.vmap(act)(jax.random.split(key, num_streams), streams)", "jax.vmap(act, (None, 0))(key, streams)"),
    Mutant("rollouts/lifetime.py", "        if restart:", "        if not restart:"),
    Mutant("rollouts/lifelong.py", "over = life.age >= lifespan", "over = life.age > lifespan"),
    Mutant("rollouts/lifelong.py", "so_far=jnp.where(last[-1], 0.0, total[-1]),", "so_far=total[-1],"),
    Mutant("tasks/door.py", "action = boxes.clip(action, space)", "pass", "tasks/test_door.py rollouts/test_rollout.py"),
    Mutant("tasks/door.py", "late = time >= env.horizon", "late = time > env.horizon", "tasks/test_time_limit.py"),
    # The outer loop
    Mutant("meta_updates/gradients.py", "return total / count(good, total)", "return total / x.shape[0]"),
    Mutant("meta_updates/gradients.py", "good = finite_tasks(results)\n", "good = finite_tasks(results) & (jnp.arange(len(keys)) == 0)\n"),
    Mutant("meta_updates/gradients.py", "lambda new, old: jnp.where(apply, new, old), moved", "lambda new, old: new, moved"),
    Mutant("meta_updates/outer_loop.py", "num_updates=state.num_updates + apply.astype(jnp.int32),", "num_updates=state.num_updates + 1,"),
    Mutant("meta_updates/outer_loop.py", "optax.clip_by_global_norm(hyper.max_grad_norm), optimizer(hyper.learning_rate)", "optimizer(hyper.learning_rate), optax.clip_by_global_norm(hyper.max_grad_norm)"),
    Mutant("meta_updates/evolution.py", "/ (2.0 * noise_std**2)", "/ noise_std**2"),
    Mutant("meta_updates/windows.py", "partial(jnp.where, life.age == 0)", "partial(jnp.where, life.age < 0)"),
    Mutant("meta_updates/windows.py", "life, _, report = parts.live(own_key, meta, life)", "life, _, report = parts.live(own_key, jax.tree.map(lambda x: x[0], pair), life)"),
    Mutant("meta_updates/windows.py", "lambda xi, e: jnp.where(newborn, 0.0, xi) + e", "lambda xi, e: e"),
    Mutant("meta_updates/windows.py", "jnp.minimum(1.0, max_norm / (norm + TINY))", "max_norm / (norm + TINY)"),
    # The learners
    Mutant("learners/gradient.py", "lambda p, a, g: p - a * g", "lambda p, a, g: p + a * g", "algorithms/test_maml.py"),
    Mutant("learners/gradient.py", "jnp.where(counted, jax.lax.stop_gradient(delta), 0.0), KEPT", "jax.lax.stop_gradient(delta), KEPT"),
    Mutant("learners/gradient.py", "mean_over_streams(terms, good) / data.reward.shape[1]", "mean_over_streams(terms, good) / jnp.mean(jnp.sum(counted, axis=1, dtype=float))"),
    Mutant("learners/gradient.py", "        if first_order:", "        if not first_order:", "algorithms/test_maml.py"),
    Mutant("learners/gradient.py", '"return/after": mean_over_streams(returns[-1], good[-1])', '"return/after": mean_over_streams(returns[0], good[0])'),
    Mutant("learners/gradient.py", 'for name, x in params.items() if name != "context"}', 'for name, x in params.items() if name != "head"}'),
    Mutant("learners/trial_gradients.py", "- gain - hyper.entropy_cost * entropy", "- gain + hyper.entropy_cost * entropy", "learners/test_recurrent.py"),
    Mutant("learners/trial_gradients.py", "total = hyper.value_cost * error", "total = 0.5 * hyper.value_cost * error", "learners/test_recurrent.py"),
    Mutant("learners/soft_actor_critic.py", "jnp.where(advantage > 0, log_prob, 0.0)", "jnp.where(advantage < 0, log_prob, 0.0)"),
    Mutant("learners/recurrent.py", "(*rates, \"entropy_cost\") if x in", "rates if x in"),
    Mutant("learners/minibatches.py", "numbers = rows + size *", "numbers = rows + 0 * size *"),
    Mutant("learners/minibatches.py", "unravel(jnp.sum(rows, axis=0))", "unravel(jnp.mean(rows, axis=0))"),
    Mutant("learners/minibatches.py", "jax.tree.map(jnp.add, total, of_chunk(*chunk))", "of_chunk(*chunk)"),
    Mutant("learners/minibatches.py", "order = jax.random.permutation(order_key, rows, axis=1, independent=True)", "order = rows", "learners/test_recurrent.py"),
    Mutant("learners/trial_gradients.py", "mean, spread = value_scale = moved", "value_scale = moved", "learners/test_recurrent.py"),
    Mutant("learners/recurrent.py", 'if config.remembers == "episode":', 'if config.remembers == "trial":'),
    Mutant("learners/recurrent.py", "return jnp.append(v[1:], jnp.zeros_like(v[:1]))", "return jnp.append(v[1:], v[-1:])"),
    Mutant("learners/recurrent.py", "(recorded.last) < num_episodes", "(recorded.last) <= num_episodes"),
    Mutant("learners/replay.py", "jnp.concatenate([new[None], old[:-1]])", "jnp.concatenate([old[1:], new[None]])"),
    Mutant("learners/replay.py", "< agent.num_batches", "<= agent.num_batches"),
    Mutant("learners/replay.py", "v - jax.lax.stop_gradient(target), 0.0)", "v - target, 0.0)"),
    Mutant("learners/actor_critic.py", "return hyper.min_discount + (1.0 - hyper.min_discount) * jax.nn.sigmoid(x)", "return jax.nn.sigmoid(x)"),
    Mutant("learners/actor_critic.py", "advantage -= others - jax.lax.stop_gradient(others)", "advantage -= others"),
    Mutant("learners/actor_critic.py", 'critic = params["outer_value" if self.config.outer_value else "value"]', 'critic = params["value"]', "learners/test_actor_critic.py algorithms/test_meta_gradient.py"),
    Mutant("learners/actor_critic.py", "return -gain - entropy_cost *", "return -gain + entropy_cost *"),
    Mutant("learners/update_rules.py", "            return y[::-1]", "            return y"),
    Mutant("learners/update_rules.py", "targets.advantage - drift_of(", "targets.advantage + drift_of("),
    Mutant("learners/update_rules.py", "jnp.expm1(log_ratio) * advantage, positive_width", "log_ratio * advantage, positive_width"),
    Mutant("learners/update_rules.py", "agent._replace(age=age + 1)", "agent._replace(age=age)"),
    # DiscoRL
    Mutant("networks/disco.py", "jax.nn.sigmoid(keep + 1.0) * cell", "jax.nn.sigmoid(keep) * cell"),
    Mutant("networks/disco.py", "jnp.where(last[:, None], 0.0, s)", "s"),
    Mutant("networks/disco.py", "return x[:, :-1], x[:, 1:]", "return x[:, :-1], x[:, :-1]"),
    Mutant("networks/disco.py", "        signed_log(seen.reward),", "        seen.reward,"),
    Mutant("networks/disco.py", "axis=(0, 1), where=good[:, None, None]", "axis=(0, 1)"),
    Mutant("learners/disco.py", "v_next=slow_value[:, 1:]", "v_next=value[:, 1:]"),
    Mutant("learners/disco.py", "jnp.minimum(rho, 1.0)", "rho"),
    Mutant("learners/disco.py", "        + going_on * Categorical(next_policy)", "        + Categorical(next_policy)"),
    Mutant("learners/disco.py", "SLOW_DECAY * old + (1.0 - SLOW_DECAY) * new", "(1.0 - SLOW_DECAY) * old + SLOW_DECAY * new"),
    Mutant("learners/disco.py", "optax.clip(1.0), ", ""),
    Mutant("learners/disco.py", "if self.first_steps else ~pieces.first", "if self.first_steps else ~pieces.last"),
    Mutant("learners/update_rules.py", "return mean_over_streams(at_steps, good)", "return jnp.mean(at_steps)", "test_absence.py"),
    # The algorithms
    Mutant("algorithms/maml.py", "        weights[-1] = 1.0", "        weights[0] = 1.0"),
    Mutant("algorithms/maml.py", "return loss - sampling_term(", "return loss + sampling_term("),
    Mutant("algorithms/maml.py", "to_come = jnp.cumsum((weights * mean)[::-1])[::-1][1:]", "to_come = jnp.cumsum((weights * mean)[::-1])[::-1][:-1]"),
    Mutant("algorithms/promp.py", "return loss + meta.hyper.kl_cost * kl", "return loss - meta.hyper.kl_cost * kl"),
    Mutant("algorithms/promp.py", "epsilon=meta.hyper.clip)", "epsilon=0.5 * meta.hyper.clip)"),
    Mutant("algorithms/maml_trpo.py", "jnp.ldexp(scale, -backtracks)", "scale * 0.8**backtracks"),
    Mutant("algorithms/maml_trpo.py", "(loss < loss_before) & (kl <= max_kl)", "loss < loss_before"),
    Mutant("algorithms/reptile.py", "jax.tree.map(jnp.subtract, constant.params, adapted)", "jax.tree.map(jnp.subtract, adapted, constant.params)"),
    Mutant("algorithms/es.py", "key, population, -fitness, self.state", "key, population, fitness, self.state"),
    Mutant("algorithms/imaml.py", "return gradient + meta.hyper.proximal * (p - centre)", "return gradient - meta.hyper.proximal * (p - centre)"),
    Mutant("algorithms/imaml.py", "pull_back(jax.tree.map(jnp.negative, solved))", "pull_back(solved)"),
    Mutant("algorithms/meta_q.py", "jnp.exp(jax.lax.stop_gradient(log_prob) - log_prob_mu)", "jnp.exp(log_prob - log_prob_mu)"),
    Mutant("algorithms/meta_actor_critic.py", "weighted = g * jnp.minimum", "weighted = jnp.minimum"),
    Mutant("algorithms/meta_actor_critic.py", "jnp.roll(target, -1, axis=1)", "jnp.roll(target, 1, axis=1)"),
    Mutant("algorithms/meta_value.py", "    rho = jnp.exp(log_ratio(agent, data))\n    part", "    rho = jnp.ones_like(data.reward)\n    part"),
    Mutant("algorithms/meta_value.py", "target = jax.lax.stop_gradient(outer_targets(data, v, v_next, rho, hyper, config))", "target = outer_targets(data, v, v_next, rho, hyper, config)"),
    Mutant("algorithms/meta_value.py", "perturbed(behaviour_key, target,", "perturbed(target_key, target,"),
    Mutant("algorithms/meta_gradient.py", "learned_hyper(meta).step_size", "meta.hyper.step_size"),
    Mutant("algorithms/meta_gradient.py", "now, held_out = life.agent.params, jax.tree.map(lambda x: x[-1]", "now, held_out = life.agent.params, jax.tree.map(lambda x: x[0]"),
    Mutant("algorithms/meta_gradient.py", "age=life.age + 1)", "age=life.age)"),
    Mutant("algorithms/learned_objective.py", "lifelong.aged(members.life, ~good, config.lifespan)", "lifelong.aged(members.life, good, config.lifespan)"),
    Mutant("learners/learned_optimizers.py", "flat - (u - jnp.mean(u))", "flat - u"),
    Mutant("learners/learned_optimizers.py", "jnp.where(of_policy(agent_params), noise, 0.0)", "noise"),
    Mutant("learners/learned_optimizers.py", "x / jnp.broadcast_to(size, x.shape)", "x"),
    Mutant("learners/learned_optimizers.py", "updated_momenta, state.momenta, gradient)", "updated_momenta, state.momenta, agent_params)"),
    Mutant("learners/update_rules.py", "((agent.age, self.lifespan), (number, self.num_epochs))", "((agent.age + 1, self.lifespan), (number, self.num_epochs))", "learners/test_learned_optimizers.py"),
    Mutant("learners/update_rules.py", "mean(jnp.abs(x), good)", "mean(x, good)", "learners/test_learned_optimizers.py"),
    Mutant("meta_updates/windows.py", "0.5 * jnp.sign(fitness - fitness[::-1])", "0.5 * jnp.sign(fitness[::-1] - fitness)"),
    Mutant("learners/beliefs.py", "jnp.where(counted, q.kl(_priors(q, inputs.reset)), 0.0)", "q.kl(_priors(q, inputs.reset))", "learners/test_beliefs.py learners/test_recurrent.py"),
    Mutant("learners/beliefs.py", "return jnp.where(reset[:, None], 0.0, past)", "return past"),
    Mutant("learners/beliefs.py", "if not self.end_to_end:", "if self.end_to_end:", "algorithms/test_varibad.py"),
    Mutant("learners/recurrent.py", "v_next=values_to_come(v)", "v_next=v", "algorithms/test_recurrent_q.py"),
    Mutant("learners/action_values.py", "fixed = jax.lax.stop_gradient(q)", "fixed = q", "algorithms/test_recurrent_q.py"),
    Mutant("learners/action_values.py", "jax.vmap(values_to_come)(greedy.astype(best.dtype))", "greedy.astype(best.dtype)", "algorithms/test_recurrent_q.py"),
    Mutant("algorithms/recurrent_q.py", "hyper=exploring(hyper, jax.tree.leaves(tasks)[0].shape[0])", "hyper=exploring(state.meta.hyper, jax.tree.leaves(tasks)[0].shape[0])"),
    Mutant("learners/action_values.py", "factor = 1.0 + hyper.diversity * place", "factor = 1.0"),
    Mutant("curricula/learnability.py", "if num_steps % family.horizon:", "if False:"),
    Mutant("algorithms/pearl.py", "counted = counted & jnp.all(jnp.isfinite(reward) | ~counted, axis=1, keepdims=True)", "pass"),
    Mutant("learners/trial_gradients.py", "reward = jnp.where(index < config.explore_episodes, 0.0, reward)", "pass"),
    Mutant("learners/buffers.py", "rows = order[jnp.arange(good.shape[0]) % jnp.maximum(jnp.sum(good), 1)]", "rows = jnp.arange(good.shape[0])"),
    # Soft actor-critics, products of Gaussians, replay by trials and by tasks
    Mutant("learners/soft_actor_critic.py", "jnp.min(q, axis=0)", "jnp.max(q, axis=0)"),
    Mutant("learners/soft_actor_critic.py", "slow + rate * (fast - slow)", "slow + rate * fast"),
    Mutant("learners/soft_actor_critic.py", "jnp.where(applied, x, y), moved", "jnp.where(True, x, y), moved"),
    Mutant("learners/soft_actor_critic.py", "jax.lax.stop_gradient(target)[None]", "target[None]"),
    Mutant("learners/soft_actor_critic.py", "jax.lax.stop_gradient(log_prob) + target_entropy", "log_prob + target_entropy"),
    Mutant("networks/task_posteriors.py", "-0.5 * jnp.log(precision)", "-1.0 * jnp.log(precision)"),
    Mutant("networks/task_posteriors.py", "jnp.where(known, evidence.precision, 1.0)", "1.0 + evidence.precision"),
    Mutant("networks/soft_actor_critic.py", "return (action - middle) / half_width", "return action - middle"),
    Mutant("learners/task_replay.py", "jnp.sum(counted, axis=1, dtype=jnp.int32)),\n        jax", "jnp.sum(counted, axis=1, dtype=jnp.int32) * 0),\n        jax"),
    Mutant("learners/task_replay.py", "places = jnp.where(good, places, capacity)", "places = jnp.where(True, places, capacity)"),
    Mutant("learners/task_replay.py", "front = jnp.argsort(~in_context,", "front = jnp.argsort(in_context,"),
    Mutant("learners/task_replay.py", "there = jnp.minimum(kept.num_steps[places], length)", "there = jnp.minimum(kept.num_steps[places] + length, length)"),
    Mutant("learners/trial_replay.py", "jnp.zeros(len(counted), jnp.int32)", "jnp.ones(len(counted), jnp.int32)"),
    Mutant("algorithms/pearl.py", "fixed_z = jax.lax.stop_gradient(z)", "fixed_z = z"),
    Mutant("algorithms/pearl.py", "seen = jnp.concatenate([steps.obs, z]", "seen = jnp.concatenate([steps.obs, fixed_z]"),
    Mutant("algorithms/pearl.py", 'networks.critic.apply(fixed["critic"], now, action)', 'networks.critic.apply(params["critic"], now, action)'),
    Mutant("algorithms/pearl.py", "discount = meta.hyper.discount * steps.discount\n    y", "discount = meta.hyper.discount * jnp.ones_like(steps.discount)\n    y"),
    Mutant("algorithms/pearl.py", "jnp.where(timestep.first, posterior(known).sample(key), memory.z)", "posterior(known).sample(key)"),
    Mutant("algorithms/pearl.py", "x + jnp.where(begun, y, 0.0)", "x + y"),
    Mutant("algorithms/pearl.py", "shown = counted & (jax.vmap(episode_index)(data.last) < episodes)", "shown = counted"),
    Mutant("algorithms/pearl.py", "infers = episodes > config.prior_episodes", "infers = episodes > 1"),
    Mutant("algorithms/pearl.py", "context._replace(reward=batch.context.training_reward)", "context"),
    Mutant("algorithms/pearl.py", "log_prob(fixed_z[:, 0])", "log_prob(z[:, 0])"),
    Mutant("learners/task_replay.py", "place = order.astype(offset.dtype) + offset", "place = used.astype(offset.dtype) * offset"),
    Mutant("algorithms/recurrent_sac.py", "jnp.where(batch.counted, v, 0.0)", "v"),
    Mutant("algorithms/recurrent_sac.py", "jax.lax.stop_gradient(known), action", "known, action"),
    Mutant("algorithms/recurrent_sac.py", "v_next = jax.vmap(values_to_come)(", "v_next = ("),
    Mutant("algorithms/recurrent_sac.py", "q_next = values(target, features(target,", "q_next = values(fixed, features(fixed,"),
    Mutant("algorithms/recurrent_sac.py", "in_half_widths(batch.action, family)", "batch.action"),
    Mutant("learners/trial_gradients.py", "earned = jnp.where(explores, 0.0, reward) + bonus", "earned = reward + bonus", "learners/test_trial_gradients.py"),
    Mutant("algorithms/dream.py", "jnp.where(explores, distance - after, 0.0)", "jnp.where(explores, after - distance, 0.0)"),
    Mutant("algorithms/dream.py", "jax.lax.stop_gradient(f), batch, whole", "f, batch, whole"),
    Mutant("algorithms/dream.py", "read=begins & (number == 1)", "read=begins & (number == 0)"),
    Mutant("algorithms/dream.py", "discount = hyper.discount * unless(ends, v)", "discount = hyper.discount * jnp.ones_like(v)"),
    Mutant("algorithms/dream.py", "f + batch.shown.noise, batch.z", "f, batch.z"),
    Mutant("algorithms/dream.py", "lambda x: x[:, : horizon + 1], x", "lambda x: x[:, :horizon], x"),
    Mutant("algorithms/dream.py", "of.exploits & ~shown.told[:, None]", "of.exploits & shown.told[:, None]"),
    Mutant("algorithms/dream.py", "early((inputs, of.explores | of.read))", "early((inputs, of.explores))"),
    Mutant("algorithms/dream.py", "counted = counted & known[:, None]", "counted = counted & True"),
    Mutant("learners/beliefs.py", "jax.tree.map(_next, self.posteriors(params, y)).sample(key)", "self.posteriors(params, y).sample(key)"),
    Mutant("learners/beliefs.py", "jnp.where(target > 0, decoded, 0.0)", "jnp.where(target > 1, decoded, 0.0)"),
    Mutant("learners/auxiliary_steps.py", "jnp.any(batch.counted) & jnp.any(counted)", "jnp.any(batch.counted)"),
    Mutant("learners/auxiliary_steps.py", "reward = in_units(data.reward, meta.reward_scale)", "reward = data.reward"),
    Mutant("learners/auxiliary_steps.py", "kept(blank(recorded, counted), counted", "kept(recorded, counted"),
    Mutant("algorithms/varibad.py", "_replace(learning_rate=hyper.belief_learning_rate)", "_replace()"),
    # The networks
    Mutant("networks/distributions.py", "-0.5 * z**2 - self.log_std", "-0.5 * z**2 + self.log_std"),
    Mutant("networks/distributions.py", "jnp.exp(2.0 * (self.log_std - other.log_std))", "jnp.exp(2.0 * (other.log_std - self.log_std))"),
    Mutant("networks/recurrent.py", "return (keep * h + (1.0 - keep) * candidate,)", "return ((1.0 - keep) * h + keep * candidate,)"),
    Mutant("networks/recurrent.py", "lambda s: jnp.where(reset, 0.0, s), state", "lambda s: s, state"),
    Mutant("networks/recurrent.py", "new.at[0].add(decay[0] * h), decay", "new, decay"),
    Mutant("networks/recurrent.py", "oldest = jnp.maximum(start, time - self.context + 1)", "oldest = jnp.maximum(start, time - self.context)"),
    Mutant("networks/recurrent.py", "& (key_times <= time)", "& (key_times <= time + 1)"),
    Mutant("networks/dense.py", "2 * scale**2 / (num_inputs + size)", "2 * scale**2 / (num_inputs + num_parts * size)"),
    Mutant("networks/heads.py", "DiagGaussian(at + width * mean, log_std + log_width)", "DiagGaussian(at + width * mean, log_std)"),
    # The tasks
    Mutant("tasks/keys.py", "(17, 29, 16, 24)", "(17, 29, 16, 25)"),
    Mutant("tasks/keys.py", "data.at[-1].add(t.astype(data.dtype))", "data.at[-1].add(0 * t.astype(data.dtype))", "tasks/test_keys.py rollouts/test_rollout.py"),
    Mutant("tasks/gridnavi.py", "arrived = jnp.all(position == params.goal)", "arrived = jnp.all(state.position == params.goal)"),
    Mutant("tasks/tabular.py", "return jnp.max(task.reward + task.transition @ v, axis=1)", "return jnp.max(task.reward + task.transition @ v, axis=0)"),
    Mutant("tasks/time_limit.py", "return obs, TimedState(inner, state.time + 1), *rest", "return obs, TimedState(inner, state.time), *rest"),
    Mutant("tasks/transform/laws.py", "begins = number[0] < probability[begun]", "begins = number[1] < probability[begun]"),
    # Evaluation and runs
    Mutant("evaluation/curves.py", "jax.vmap(finite_streams)(data) & jnp.any(data.last, axis=-1)", "jax.vmap(finite_streams)(data)"),
    Mutant("evaluation/trials.py", "index[-1] + last[-1].astype(index.dtype)", "index[-1]"),
    Mutant("evaluation/statistics.py", "gap = np.mean(optimal) - mean[0]", "gap = np.mean(optimal)"),
    Mutant("evaluation/statistics.py", "return (returns - zero) / (one - zero)", "return returns / one"),
    Mutant("runs/metric_lines.py", '"update": done + i + 1', '"update": done + i'),
    Mutant("runs/run_folder.py", '["update"] <= done:', '["update"] < done:'),
    Mutant("runs/checkpoints.py", 'sha.update(array.tobytes())', "pass"),
)
# fmt: on


class Outcome(NamedTuple):
    """The result of the tests of one fault."""

    caught: bool
    seconds: float
    line: str
    """The first test that failed, or the end of the report."""


def run(mutant: Mutant, copy: Path) -> Outcome:
    """Plants ``mutant`` in a ``copy`` of the project, runs the fast tests of its file, and mends the copy again."""
    path = copy / "jaxmeta" / mutant.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file} must hold {mutant.old!r} once, and holds it {sound.count(mutant.old)} times"
        )
    path.write_text(sound.replace(mutant.old, mutant.new), encoding="utf-8")
    began = time.monotonic()
    try:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
        ]
        done = subprocess.run(
            [*command, *mutant.test_paths()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        path.write_text(sound, encoding="utf-8")
    lines = done.stdout.splitlines() or [done.stderr[-200:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if done.returncode not in (0, 1):  # no test was run, or the run broke off
        raise RuntimeError(
            f"{mutant.file}: {mutant.old!r}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}"
        )
    return Outcome(done.returncode == 1, time.monotonic() - began, (failed or lines)[-1])


def copied(folder: Path) -> Path:
    """A copy of the project in ``folder``."""
    unneeded = shutil.ignore_patterns(".git", ".*_cache", "__pycache__")
    return Path(shutil.copytree(ROOT, folder, ignore=unneeded))


def main() -> int:
    """Plants the chosen faults; returns the number of faults that survived without a reason."""
    parser = argparse.ArgumentParser(description="Plant small faults and run the fast tests.")
    parser.add_argument("words", nargs="*", help="parts of file names; none is every file")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="faults tried at a time"
    )
    args = parser.parse_args()
    chosen = [x for x in MUTANTS if not args.words or any(word in x.file for word in args.words)]
    survived = 0
    with (
        tempfile.TemporaryDirectory() as work,
        concurrent.futures.ThreadPoolExecutor(args.processes) as pool,
    ):
        # Programs that a fault does not touch are compiled once.
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(work, "compiled")))
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for i in range(args.processes):
            copies.put(copied(Path(work, f"copy-{i}")))

        def one(mutant: Mutant) -> Outcome:
            copy = copies.get()
            try:
                return run(mutant, copy)
            finally:
                copies.put(copy)

        for mutant, outcome in zip(chosen, pool.map(one, chosen), strict=True):
            survived += not (outcome.caught or mutant.reason)
            verdict = "caught  " if outcome.caught else "survived"
            why = outcome.line if outcome.caught else mutant.reason
            print(
                f"{verdict} {outcome.seconds:4.0f} s  {mutant.file}: {mutant.old.strip()}  [{why}]",
                flush=True,
            )
    print(f"{len(chosen)} faults, {survived} of them survived without a reason")
    return survived


if __name__ == "__main__":
    sys.exit(min(main(), 1))
