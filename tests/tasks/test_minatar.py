import functools
import inspect

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import evaluation, tasks
from jaxmeta.tasks import minatar
from jaxmeta.tasks.transform.wrappers import innermost, replaced
from tests.probes import thorough

GAMES = {
    "breakout": ("Breakout-MinAtar", 3, 4),
    "freeway": ("Freeway-MinAtar", 3, 7),
    "asterix": ("Asterix-MinAtar", 5, 4),
    "space_invaders": ("SpaceInvaders-MinAtar", 4, 6),
    "seaquest": ("Seaquest-MinAtar", 6, 10),
}


def steps(env, task, actions, seed=0):
    """Rewards and observations of one episode's actions, ``[T]``."""

    def step(state, inputs):
        key, action = inputs
        obs, after, reward, done, _ = env.step_env(key, state, action, task)
        after = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), after, state)
        return after, (obs, reward, done)

    _, state = env.reset_env(jax.random.key(seed), task)
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)
    keys = jax.random.split(jax.random.key(seed + 1), len(actions))
    return jax.lax.scan(step, state, (keys, actions))[1]


LIVE = {
    "freeway": ["player_speed"],
    "asterix": ["init_spawn_speed", "init_move_interval", "ramp_interval"],
    "space_invaders": ["enemy_move_interval", "enemy_shot_interval", "shot_cool_down"],
    "seaquest": [
        "init_spawn_speed",
        "init_move_interval",
        "max_oxygen",
        "diver_spawn_speed",
        "diver_move_interval",
        "enemy_shot_interval",
        "shot_cool_down",
    ],
}


@functools.cache
def game(name):
    """gymnax's game as a program ``(tasks, actions)``; there is a task for each parameter that can be drawn, and one."""
    env, _ = gymnax.make(GAMES[name][0])
    return jax.jit(jax.vmap(lambda task, actions: steps(env, task, actions), (0, None)))


def stacked(tasks):
    return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *jax.device_get(tasks))


def random_actions(name):
    return np.random.default_rng(0).integers(0, GAMES[name][1], 100, np.int32)


@pytest.mark.parametrize("name", thorough(GAMES, ("breakout",)), scope="module")
def test_buttons_do_what_the_task_says_in_gymnax_s_game(name):
    _, num_actions, channels = GAMES[name]
    family = tasks.make(name)
    assert family.action_space.n == num_actions
    assert family.observation_shape == (10, 10, channels)
    task = jax.jit(family.test)(jax.random.key(3))
    assert task.inner.max_steps_in_episode == family.horizon == 500
    pressed = random_actions(name)
    got = jax.jit(lambda task, actions: steps(family.env, task, actions))(task, pressed)
    same = stacked([task.inner] * (1 + len(LIVE.get(name, ()))))
    expected = game(name)(same, np.asarray(task.drawn)[pressed])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b[0])


@pytest.mark.parametrize(
    ("name", "least"),
    [
        pytest.param("breakout", 25, marks=pytest.mark.slow),
        pytest.param("freeway", 11, marks=pytest.mark.slow),
        pytest.param("asterix", 17, marks=pytest.mark.slow),
        pytest.param("space_invaders", 20, marks=pytest.mark.slow),
        pytest.param("seaquest", 36, marks=pytest.mark.slow),
    ],
)
def test_experts_are_far_better_than_random(name, least, in_earnest):
    """Whatever the buttons do. Random agents earn about 0.3, 0.1, 0.4, 3.5 and 0.1."""
    family = tasks.make(name)
    splits = ("test", "out_of_distribution")
    drawn = [tasks.sample_tasks(jax.random.key(0), family, 4, split=split) for split in splits]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)
    returns = jax.jit(
        lambda tasks: evaluation.expert_returns(
            jax.random.key(1), tasks, family=family, num_streams=2
        )
    )(both)
    assert np.all(np.asarray(returns).reshape(2, 4).mean(1) > least)
    random = jax.jit(
        lambda tasks: evaluation.random_returns(
            jax.random.key(1), tasks, family=family, num_streams=1
        )
    )(both)
    assert np.mean(random) < 0.25 * least


@pytest.mark.parametrize("name", thorough(LIVE, ("breakout", "freeway")), scope="module")
def test_parameters_that_can_be_drawn_change_the_game(name):
    """A parameter that a game ignores would make tasks differ in name only."""
    tasks.make(name, parameters={field: (1, 9) for field in LIVE[name]})
    _, params = gymnax.make(GAMES[name][0])
    values = [params] + [
        params.replace(**{field: max(getattr(params, field) // 2, 1)}) for field in LIVE[name]
    ]
    obs = np.asarray(game(name)(stacked(values), random_actions(name))[0])
    for i, field in enumerate(LIVE[name], 1):
        assert not np.array_equal(obs[0], obs[i]), field


def test_settings_are_put_around_the_game():
    family = tasks.make(
        "asterix",
        horizon=50,
        max_stickiness=0.2,
        signed_rewards=True,
        ramping=False,
        parameters={"init_spawn_speed": (5, 15)},
    )
    assert family.name == "asterix"
    assert family.expert_action is None
    drawn, outside = jax.jit(
        lambda key: [
            tasks.sample_tasks(key, family, 200, split=split)
            for split in ("test", "out_of_distribution")
        ]
    )(jax.random.key(0))
    assert set(np.asarray(drawn.drawn).tolist()) == {-1.0, 1.0}
    stickiness = np.asarray(drawn.inner.drawn)
    assert 0 <= stickiness.min() < 0.02
    assert 0.18 < stickiness.max() <= 0.2
    inner = drawn.inner.inner.inner
    assert not np.any(inner.ramping)
    assert set(np.asarray(inner.init_spawn_speed).tolist()) == set(range(5, 16))
    assert np.min(outside.inner.drawn) >= 0.2
    plain = tasks.make("breakout", permuted_actions=False)
    assert plain.expert_action is minatar.rally


@pytest.mark.parametrize("name", GAMES)
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=r"max_stickiness=0.6 must lie between"):
        tasks.make(name, max_stickiness=0.6)
    if "parameters" in inspect.signature(tasks.FAMILIES[name]).parameters:
        with pytest.raises(ValueError, match="parameters='gravity' is unknown"):
            tasks.make(name, parameters={"gravity": (1, 2)})


rally, cross, collect, shoot = (
    jax.jit(functools.partial(expert, None))
    for expert in (minatar.rally, minatar.cross, minatar.collect, minatar.shoot)
)
dive = jax.jit(minatar.dive)


def on(board, *cells):
    """The board with more on it, at (row, column, channel); there is no column 10."""
    board = board.copy()
    for row, column, channel in cells:
        if column < 10:
            board[row, column, channel] = 1
    return board


def test_a_falling_ball_s_column_folds_at_the_walls():
    def seen(ball, last, paddle=4):
        return on(np.zeros((10, 10, 4), np.float32), (9, paddle, 0), (*ball, 1), (*last, 2))

    stay, left, right = 0, 1, 2
    # From column 7 and row 5 going right it is in column 9 at row 8 and in column 8 at row 9. Met in
    # the latter it goes to the right, where the brick is; without one the rule takes the former.
    falling = seen((5, 7), (4, 6), paddle=9)
    assert rally(falling) == stay
    assert rally(on(falling, (1, 9, 3))) == left
    assert rally(seen((5, 7), (4, 6), paddle=7)) == right
    assert rally(seen((5, 7), (6, 8), paddle=4)) == right  # rising: follow it
    assert rally(seen((5, 7), (6, 8), paddle=7)) == stay


def test_the_chicken_waits_for_a_car_and_walks_behind_it():
    def seen(car, behind, speed, row=6):
        cells = (row, 4, 0), (row - 1, car, 1), (row - 1, behind, 1 + speed)
        return on(np.zeros((10, 10, 7), np.float32), *cells)

    wait, up = 0, 1
    assert cross(seen(3, 2, speed=1)) == wait  # one cell before
    assert cross(seen(2, 1, speed=1)) == wait
    assert cross(seen(2, 1, speed=5)) == up  # slower: it will not be there yet
    assert cross(seen(3, 4, speed=1)) == up  # past, going left
    assert cross(seen(5, 6, speed=1)) == wait


def test_asterix_takes_gold_and_shuns_what_an_enemy_enters_next():
    board = on(np.zeros((10, 10, 4), np.float32), (5, 5, 0), (5, 8, 3))
    right = 3
    assert collect(board) == right
    # An enemy at (5, 7) that comes from the right enters (5, 6) next.
    met = on(board, (5, 7, 1), (5, 8, 2))
    assert collect(met) != right
    away = on(board, (5, 7, 1), (5, 6, 2))
    assert collect(away) == right


def test_asterix_s_pauses_do_not_shrink_to_nothing():
    """As in MinAtar; gymnax's own do."""
    family = tasks.make("asterix", permuted_actions=False)
    task, state = jax.jit(
        lambda key: ((task := family.train(key)), family.env.reset_env(key, task)[1])
    )(jax.random.key(0))
    due = {"move_speed": jnp.array(1), "ramp_timer": jnp.array(-1), "ramp_index": jnp.array(1)}
    state = replaced(jax.tree.map(jnp.asarray, state), due)
    step = (jax.random.key(2), jnp.array(0), task)
    gymnaxs, _ = gymnax.make("Asterix-MinAtar")
    for env, before, pause in ((gymnaxs, innermost(state), 0), (family.env, state, 1)):
        _, after, *_ = env.step_env(step[0], before, *step[1:])
        assert innermost(after).move_speed == pause
        assert innermost(after).ramp_index == 2


def test_the_cannon_does_not_step_under_a_bullet():
    board = on(np.zeros((10, 10, 6), np.float32), (9, 4, 0), (2, 4, 1), (2, 7, 1))
    stay, left, right, fire = range(4)
    assert shoot(board) == fire
    assert shoot(on(board, (7, 4, 5))) in (left, right)
    assert shoot(on(board, (7, 4, 5), (6, 3, 5))) == right
    alone = on(np.zeros((10, 10, 6), np.float32), (9, 4, 0), (2, 7, 1))
    assert shoot(alone) == right
    assert shoot(on(alone, (8, 5, 5))) in (stay, left, fire)


def test_the_submarine_shoots_ahead_dodges_and_surfaces_with_divers():
    params = gymnax.make("Seaquest-MinAtar")[1]
    stay, left, up, right, down, fire = range(6)

    def act(obs):
        return dive(params, obs)

    def at(row=4, column=4, facing=right, air=10, divers=0):
        obs = np.zeros((10, 10, 10), np.float32)
        obs[9, :air, 7] = obs[9, 9 - divers : 9, 8] = 1
        back = column - 1 if facing == right else column + 1
        return on(obs, (row, column, 0), (row, back, 1))

    def met(obs, row, column, channel=5, to=left):
        trail = column - 1 if to == right else column + 1
        return on(obs, (row, column, channel), (row, trail, 3))

    bullet, enemy_bullet, enemy_sub, diver = 2, 4, 6, 9
    assert act(at()) == stay
    # Fire at what is ahead, unless a bullet is on its way; turn to what is behind; go to its row.
    assert act(met(at(), 4, 8)) == fire
    assert act(met(at(), 4, 8, channel=enemy_sub)) == fire
    assert act(on(met(at(), 4, 8), (4, 6, bullet))) == stay
    assert act(met(at(facing=left), 4, 8)) == right
    assert act(met(at(), 6, 8)) == down
    assert act(met(at(), 2, 8)) == up
    # Divers are met, whichever way they swim.
    assert act(met(at(), 4, 6, channel=diver)) == right
    assert act(met(at(), 5, 4, channel=diver)) == down
    # Not into what comes, nor to stay before it; what has passed is no danger.
    assert act(met(at(), 4, 5)) in (up, down, left)
    assert act(on(at(), (4, 3, enemy_bullet))) in (up, down, right)
    assert act(met(met(at(), 6, 8), 5, 5)) != down
    assert act(met(met(at(), 4, 5), 5, 4)) in (up, left)
    assert act(met(at(), 4, 5, to=right)) == fire
    # Up with six divers or for air; without a diver, which would be the end, there is one to look for.
    assert act(met(at(divers=6), 4, 8)) == fire
    assert act(met(at(divers=6), 6, 8)) == up
    assert act(met(at(divers=5), 6, 8)) == down
    assert act(met(at(divers=1, air=0), 6, 8)) == up
    assert act(met(at(air=0), 6, 4, channel=diver)) == down
    assert act(at(row=1, air=0)) != up
    assert act(at(row=1, divers=1, air=0)) == up
    # Little air is enough close to the surface.
    little = params.replace(max_oxygen=80)
    assert dive(little, met(at(row=8, divers=1, air=2), 8, 8, channel=diver)) == up
    assert dive(params, met(at(row=8, divers=1, air=2), 8, 8, channel=diver)) == right
    # What shows its direction falls off the board at one edge and comes back on the far side at the other.
    assert act(met(at(column=0), 4, 5)) == fire
    assert act(met(at(column=9, facing=left), 4, 5, to=right)) == fire
