"""Windows lie within one history, and a run on them resumes bit for bit."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmeta import datasets, tasks
from jaxmeta.algorithms.algorithm_distillation import Config, algorithm_distillation
from jaxmeta.datasets.histories import Histories
from jaxmeta.networks.recurrent import gru
from jaxmeta.runs import training
from jaxmeta.types import TimeStep, Trajectory


def numbered(num_tasks, num_streams, num_steps, length=None):
    """Histories whose rewards say where they are from: 1 000 000 m + 10 000 n + t."""
    m, n, t = np.indices((num_tasks, num_streams, num_steps))
    number = jnp.asarray(1_000_000 * m + 10_000 * n + t, jnp.int32)
    first = jnp.asarray(t % 5 == 0)
    timestep = TimeStep(number[..., None], number, number, first)
    data = Trajectory(timestep, number, number, number, number, ~first, number[..., None], ())
    if length is None:
        length = np.full((num_tasks, num_streams), num_steps)
    return Histories(jnp.arange(num_tasks), data, jnp.asarray(length, jnp.int32))


def drawn(source, num=4000):
    return source.sample(jax.random.key(0), source.load(0)[0], num)


def test_windows_never_cross_histories_and_are_uniform():
    length = np.array([[20, 12, 20], [20, 20, 8]])
    source = datasets.windows(numbered(2, 3, 20, length), 8)
    seen = np.asarray(drawn(source).reward)
    np.testing.assert_array_equal(np.diff(seen, axis=1), 1)  # one history, in order
    m, n, start = seen[:, 0] // 1_000_000, seen[:, 0] // 10_000 % 100, seen[:, 0] % 10_000
    assert np.all(start + 8 <= length[m, n])
    for i in range(2):
        for j in range(3):
            places = start[(m == i) & (n == j)]
            number, count = length[i, j] - 7, len(places)
            assert abs(count - 4000 / 6) < 120  # five standard deviations
            expected = count / number
            chi2 = np.sum((np.bincount(places, minlength=number) - expected) ** 2 / expected)
            assert chi2 < 45  # at most 12 degrees of freedom: p < 1e-5


def test_windows_of_whole_episodes_begin_with_one():
    seen = np.asarray(drawn(datasets.windows(numbered(2, 2, 20), 7, starts="episode"), 3000).reward)
    starts, count = np.unique(seen[:, 0] % 10_000, return_counts=True)
    assert starts.tolist() == [0, 5, 10]
    np.testing.assert_allclose(count, 1000, atol=130)  # five standard deviations
    np.testing.assert_array_equal(np.diff(seen, axis=1), 1)


def test_other_histories_are_other_data():
    """A run that resumes is refused on histories of the same shape."""
    one, same, other = (
        datasets.windows(numbered(2, 2, 20)._replace(tasks=i), 3).description for i in (0, 0, 1)
    )
    assert one == same == other  # the tasks are not read
    changed = numbered(2, 2, 20)
    changed = changed._replace(data=changed.data._replace(reward=changed.data.reward + 1))
    assert datasets.windows(changed, 3).description != one


def test_all_arrays_are_cut_at_the_same_place():
    window = drawn(datasets.windows(numbered(2, 2, 20), 3), 50)
    for x in jax.tree.leaves(window._replace(timestep=window.timestep._replace(first=()), last=())):
        np.testing.assert_array_equal(x.reshape(50, 3), window.reward)
    np.testing.assert_array_equal(window.timestep.first, window.reward % 5 == 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda h: datasets.windows(h, 21),
            "length=21 must be at most 12: history 1 of task 0 has 12 steps",
        ),
        (lambda h: datasets.windows(h, 0), "length=0 must be at least 1"),
        (
            lambda h: datasets.windows(h._replace(length=h.length[:, :1]), 3),
            r"histories.length has shape \(1, 1\); it must be \[M, N\]",
        ),
        (lambda h: datasets.windows(h, 3, starts="episodes"), "starts='episodes' is unknown"),
        (
            lambda h: datasets.windows(h._replace(length=h.length + 1), 3),
            "histories.length holds 13 to 21; it must be between 0 and 20",
        ),
        (
            lambda h: datasets.windows(
                h._replace(data=h.data._replace(action=h.data.action[:, :1])), 3
            ),
            r"histories.data.action has shape \(1, 1, 20",
        ),
        (
            lambda h: datasets.windows(
                h._replace(data=h.data._replace(last=h.data.last[:, :, 1:])), 3
            ),
            r"histories.data.last has shape \(1, 2, 19\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(numbered(1, 2, 20, np.array([[20, 12]])))


@pytest.fixture(scope="module")
def family():
    return tasks.make("dark_room", size=3, horizon=4)


@pytest.fixture(scope="module")
def dataset(family, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "histories"
    with datasets.create(folder, family) as writer:
        for shard in range(5):
            key, task_key = jax.random.split(jax.random.key(shard))
            drawn = tasks.sample_tasks(task_key, family, 2, split="train")
            writer.append(
                datasets.mixtures(key, drawn, family=family, num_streams=2, num_episodes=4)
            )
    return datasets.load(folder, family)


def test_stream_reads_every_shard_once_in_a_pass(dataset):
    source = datasets.stream(dataset, 6, num_shards=2, updates_per_load=3, seed=1)
    whole = [np.asarray(dataset.read([i]).data.action) for i in range(5)]

    def shards(update):
        (data, _), end = source.load(update)
        assert end == update // 3 * 3 + 3
        pieces = np.split(np.asarray(data.action), 2)
        return [next(i for i, x in enumerate(whole) if np.array_equal(x, y)) for y in pieces]

    first, second = ([i for u in (k, k + 3, k + 6) for i in shards(u)] for k in (0, 9))
    assert sorted(first[:5]) == sorted(second[:5]) == list(range(5))
    assert first[5] == first[0]  # the last load is filled up
    assert first != second
    assert shards(4) == first[2:4]


@pytest.mark.slow
def test_training_on_a_stream_resumes_bit_for_bit(dataset, family, tmp_path):
    algorithm = algorithm_distillation(family, Config(num_episodes=2), memory=gru(4))

    def run(folder, meta_updates, resume=False):
        config = training.Config(meta_updates=meta_updates, num_tasks=4, checkpoint_every=2)
        source = datasets.stream(dataset, 6, num_shards=2, updates_per_load=3)
        return training.train(
            algorithm, family, config, source=source, folder=tmp_path / folder, resume=resume
        )

    whole = run("whole", 7)
    run("parts", 4)
    parts = run("parts", 7, resume=True)
    for x, y in zip(jax.tree.leaves(whole.state), jax.tree.leaves(parts.state), strict=True):
        np.testing.assert_array_equal(x, y)
    other = datasets.stream(dataset, 5, num_shards=2, updates_per_load=3)
    config = training.Config(meta_updates=9, num_tasks=4)
    with pytest.raises(ValueError, match=r"data\.windows is 5 and was 6"):
        training.train(
            algorithm, family, config, source=other, folder=tmp_path / "parts", resume=True
        )


@pytest.mark.slow
def test_a_population_trains_on_a_source(dataset, family):
    """Each member equals the run of its seed, up to rounding."""
    algorithm = algorithm_distillation(family, Config(num_episodes=2), memory=gru(4))
    source = datasets.windows(dataset.read(), 6)
    config = training.Config(meta_updates=2, num_tasks=4)
    both = training.train_population(algorithm, family, config, num_seeds=2, source=source)
    alone = training.train(
        algorithm, family, training.Config(meta_updates=2, num_tasks=4, seed=1), source=source
    )
    for x, y in zip(jax.tree.leaves(both.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(x[0, 1], y, rtol=1e-4, atol=1e-6)


def test_one_load_is_in_memory_at_a_time(dataset, family):
    """What was loaded before is gone when the next load begins."""
    algorithm = algorithm_distillation(family, Config(num_episodes=2), memory=gru(4))
    source = datasets.stream(dataset, 6, num_shards=1, updates_per_load=1)
    before, alive = [], []

    def load(update):
        alive.append(sum(ref() is not None for ref in before))
        (data, lengths), end = source.load(update)
        data = jax.tree.map(jnp.asarray, data)
        before.extend(weakref.ref(x) for x in jax.tree.leaves(data))
        return (data, lengths), end

    config = training.Config(meta_updates=4, num_tasks=2)
    training.train(algorithm, family, config, source=source._replace(load=load))
    assert alive == [0, 0, 0, 0]
