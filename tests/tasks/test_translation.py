import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmeta import evaluation, tasks
from jaxmeta.rollouts.rollout import begin_stream, rollout
from jaxmeta.tasks import translation
from jaxmeta.tasks.translation import END, FAMILY, KINDS, LANGUAGES, SPLITS, Translation
from jaxmeta.types import Learner

L = 14
TEST_LANGUAGES = "fo fy lb sv ca fur gl sc scn sk sl cy lv"
VARIANTS = ["no nn", "bs hr", "dsb hsb", "gsw wae", "pl szl", "bew id ms"]
"""Languages so near to each other that knowing one is knowing the other."""


@functools.cache
def family(**settings):
    return tasks.make("translation", **settings)


@functools.cache
def task_of(language, kinds=KINDS):
    (table,) = translation._lexicons((language,), kinds, L)
    return translation._task(table)


def stacked(languages, kinds=KINDS):
    each = [task_of(language, kinds) for language in languages.split()]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def pairs(language):
    """The names of a task as words."""
    task, sources = task_of(language), translation._english(KINDS, L).source
    return {
        translation.text(sources[i]): translation.text(task.target[i])
        for i in np.flatnonzero(task.length)
    }


def acting(act, family, num_steps):
    """``(key, task) -> trajectory``, ``act(key, task, obs)`` being told the task."""
    learner = Learner(
        init=lambda key, task: (),
        memory=lambda task: (),
        act=lambda key, task, agent, memory, t: (act(key, task, t.obs), jnp.zeros(()), memory),
        update=lambda key, task, agent, data: agent,
    )

    def acted(key, task):
        stream = begin_stream(key, task, task, learner=learner, env=family.env)
        return rollout(
            key, task, task, (), stream, learner=learner, env=family.env, num_steps=num_steps
        )[1]

    return acted


@functools.cache
def wander(family, num_steps=60):
    act = acting(lambda key, task, obs: family.random_action(key), family, num_steps)
    return jax.jit(jax.vmap(act))


def parts(obs):
    """Source, the characters ahead, the last one written and the kind: one-hot."""
    sizes = np.cumsum([(L - 1) * END, translation.AHEAD * 28, 28])
    source, ahead, last, kind = np.split(np.asarray(obs), sizes, axis=-1)
    return (
        source.reshape(*source.shape[:-1], L - 1, END),
        ahead.reshape(*ahead.shape[:-1], -1, 28),
        last,
        kind,
    )


@pytest.mark.parametrize(
    ("language", "known"),
    [
        ("de", dict(friday="freitag", spain="spanien", germany="deutschland", twelve="zwolf")),
        ("de", {"twenty one": "einundzwanzig", "thirty": "dreissig", "austria": "osterreich"}),
        ("es", {"friday": "viernes", "twenty one": "veintiuno", "spain": "espana"}),
        ("da", {"friday": "fredag", "fifty": "halvtreds"}),
        ("pl", {"saturday": "sobota", "poland": "polska"}),
        ("cy", {"germany": "yr almaen", "eight": "wyth"}),
        ("eu", {"friday": "ostirala", "us dollar": "dolar estatubatuarra"}),
        ("tr", {"twenty one": "yirmibir", "friday": "cuma"}),
        ("fi", {"finland": "suomi", "april": "huhtikuu", "one": "yksi"}),
    ],
)
def test_names_in_languages(language, known):
    """What anyone may look up; what does not fit is missing."""
    found = pairs(language)
    for source, target in known.items():
        if len(target) < L:
            assert found[source] == target
        else:
            assert source not in found


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("Österreich", "osterreich"),
        ("dreißig", "dreissig"),
        ("København", "kobenhavn"),
        ("złoty", "zloty"),
        ("yirmi altı", "yirmi alti"),
        ("İsveç", "isvec"),
        ("Guinea-Bissau", "guinea bissau"),
        ("Côte d’Ivoire", "cote d ivoire"),
        ("paral·lel", "parallel"),
        ("Þýskaland", "thyskaland"),
        ("Việt Nam", "viet nam"),
        ("Россия", None),
        ("Hongkong (Kina)", None),
        ("--", None),
    ],
)
def test_spelling(name, letters):
    assert translation.spelt(name) == letters


def test_the_split_of_languages():
    """Pinned: 36 languages to learn from, 13 of the same families and 83 of others to try."""
    listed = {split: " ".join(SPLITS[split].values()).split() for split in tasks.SPLITS}
    assert listed["test"] == TEST_LANGUAGES.split()
    assert [len(x) for x in listed.values()] == [36, 13, 83]
    assert len(LANGUAGES) == len(set(LANGUAGES)) == 36 + 13 + 83
    assert SPLITS["train"].keys() == SPLITS["test"].keys()
    assert not SPLITS["train"].keys() & SPLITS["out_of_distribution"].keys()
    for variants in VARIANTS:
        sides = {split for split in listed for x in variants.split() if x in listed[split]}
        assert len(sides) == 1
    assert FAMILY["sv"] == "Germanic"


@pytest.mark.parametrize("split", tasks.SPLITS)
def test_tasks_are_the_split_s_languages(split):
    """Each as likely, none left out for want of names, and none mostly English."""
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family(), 4000, split=split))
    language = np.asarray(drawn(jax.random.key(0)).language)
    listed = [LANGUAGES.index(x) for x in " ".join(SPLITS[split].values()).split()]
    counts = np.bincount(language, minlength=len(LANGUAGES))
    assert counts[listed].sum() == 4000
    assert scipy.stats.chisquare(counts[listed]).pvalue > 1e-4
    sources = translation._english(KINDS, L).source
    for code in map(LANGUAGES.__getitem__, listed):
        task = task_of(code)
        there = np.asarray(task.length) > 0
        assert there.sum() >= len(sources) / 3
        assert np.mean(np.all(np.asarray(task.target) == sources, axis=1)[there]) < 0.67


@pytest.mark.parametrize("language", ["sv", "vi", "bez"])
def test_names_are_drawn_by_kind(language):
    """A kind that the language has, each as likely; then one of its names; never one that is missing."""
    task, env = task_of(language), family().env
    reset = jax.jit(jax.vmap(lambda key: env.reset_env(key, task)[1].entry))
    entry = np.asarray(reset(jax.random.split(jax.random.key(0), 20_000)))
    kind, there = translation._english(KINDS, L).kind, np.asarray(task.length) > 0
    expected = np.zeros(len(kind))
    for k in set(kind[there]):
        expected[there & (kind == k)] = 1 / np.sum(there & (kind == k))
    expected *= 20_000 / expected.sum()
    counts = np.bincount(entry, minlength=len(kind))
    assert counts[~there].sum() == 0
    assert scipy.stats.chisquare(counts[there], expected[there]).pvalue > 1e-4


@pytest.mark.slow
def test_random_characters_earn_a_28th(in_earnest):
    @jax.jit
    def earned():
        drawn = tasks.sample_tasks(jax.random.key(0), family(), 256, split="train")
        return evaluation.random_returns(jax.random.key(1), drawn, family=family())

    np.testing.assert_allclose(earned().mean(), 1 / 28, atol=0.003)


@pytest.mark.parametrize("feedback", ["correction", "reward"])
def test_who_knows_the_language_earns_one(feedback):
    """An agent that looks its name up in the task's own table, by what it observes."""
    told = family(feedback=feedback)
    sources = jnp.asarray(translation._english(KINDS, L).source)
    shown = jax.nn.one_hot(sources[:, :-1], END)

    def look_up(obs):
        source = obs[: (L - 1) * END].reshape(L - 1, END)
        return jnp.argmin(jnp.sum(jnp.abs(shown - source[None]), axis=(1, 2)))

    env = told.env

    def episode(key, task):
        obs, state = env.reset_env(key, task)
        entry = look_up(obs)

        def step(carry, t):
            state, done, total = carry
            action = task.target[entry, t].astype(jnp.int32)
            _, state, reward, terminated, _ = env.step_env(key, state, action, task)
            total = total + jnp.where(done, 0.0, reward)
            return (state, done | terminated, total), None

        start = (state, jnp.zeros((), bool), jnp.zeros(()))
        (_, done, total), _ = jax.lax.scan(step, start, jnp.arange(L))
        return done, total

    batch = stacked("de fr eu vi ga tr bez sv")
    keys = jax.random.split(jax.random.key(0), 32)
    done, total = jax.jit(jax.vmap(jax.vmap(episode, (0, None)), (None, 0)))(keys, batch)
    assert done.all()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(told.optimal_return)(batch), 1.0, atol=1e-5)


def test_a_short_horizon_cuts_translations_off():
    short, task = family(kinds=("days",), horizon=3), task_of("de", ("days",))
    assert task.length.tolist() == [7, 9, 9, 11, 8, 8, 8]  # Montag to Sonntag, ends included
    np.testing.assert_allclose(short.optimal_return(task), np.mean(3 / task.length), rtol=1e-5)
    data = wander(short, 9)(jax.random.split(jax.random.key(0), 1), stacked("de", ("days",)))
    assert data.last[0].tolist() == [False, False, True] * 3
    assert jnp.all(data.discount == 1)


def test_right_and_wrong_characters():
    """Dutch Friday, step by step: corrected where it was wrong, and shown as it was proposed else."""
    task = task_of("nl", ("days",))
    proposed = "vrxjdaq"
    for feedback, seen in [("correction", "vrijdag"), ("reward", proposed)]:
        env = Translation(kinds=("days",), feedback=feedback)
        entry = [translation.text(x) for x in translation._english(("days",), L).source].index(
            "friday"
        )
        _, state = env.reset_env(jax.random.key(0), task)
        state = state.replace(entry=jnp.asarray(entry, jnp.int32))
        assert task.length[entry] == 8
        rewards = []
        for t, character in enumerate([*map(translation.ALPHABET.index, proposed), END]):
            obs, state, reward, terminated, _ = env.step_env(
                jax.random.key(0), state, jnp.asarray(character), task
            )
            rewards.append(float(reward * 8))
            assert bool(terminated) == (t == 7)
            source, _, last, kind = parts(obs)
            assert translation.text(np.nonzero(source)[1]) == "friday"
            assert translation.text([last.argmax()]) == (seen[t] if t < 7 else "")
            assert kind.tolist() == [1]
        np.testing.assert_allclose(rewards, [1, 1, 0, 1, 1, 1, 0, 1], atol=1e-6)


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
    return row[-1]


@settings(max_examples=40)
@given(
    source=st.text("abc", min_size=1, max_size=6),
    written=st.text("abcd", max_size=8),
)
def test_distances_are_edit_distances(source, written):
    numbers = [translation.ALPHABET.index(x) for x in source]
    row = jnp.arange(8)
    padded = jnp.array(numbers + [END] * (8 - len(source)))
    for x in written:
        row = APPENDED(row, padded, translation.ALPHABET.index(x))
    expected = [edit_distance(written, source[:j]) for j in range(len(source) + 1)]
    assert row[: len(source) + 1].tolist() == expected


APPENDED = jax.jit(translation._appended)


def test_what_is_ahead_follows_the_translation():
    """The place in the source goes on with what has been written."""
    env = Translation(feedback="reward")
    entry = [translation.text(x) for x in translation._english(KINDS, L).source].index("germany")
    task = env.default_params
    for written, expected in [("", "ger"), ("j", "erm"), ("xxger", "man"), ("germany", "")]:
        _, state = env.reset_env(jax.random.key(0), task)
        state = state.replace(entry=jnp.asarray(entry, jnp.int32))
        obs = env._observed(state)
        for x in written:
            action = jnp.asarray(translation.ALPHABET.index(x))
            obs, state, *_ = env.step_env(jax.random.key(0), state, action, task)
        ahead = parts(obs)[1]
        assert ahead.sum() == translation.AHEAD
        assert translation.text(ahead.argmax(-1)) == expected


def test_rollouts_are_their_key_s_and_their_task_s():
    """Languages at once: the same again by the same keys; a task outlives its episodes."""
    keys = jax.random.split(jax.random.key(0), 32)
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family(), 32, split="train"))(
        jax.random.key(1)
    )
    data = wander(family())(keys, drawn)
    jax.tree.map(np.testing.assert_array_equal, data, wander(family())(keys, drawn))
    assert data.timestep.obs.shape == (32, 60, *family().observation_shape)
    assert set(np.unique(data.next_obs)) == {0, 1}
    assert np.array_equal(data.last, data.discount == 0)
    sources = [translation.text(x) for x in translation._english(KINDS, L).source]
    for m in range(0, 32, 4):
        task, one = jax.tree.map(lambda x, m=m: np.asarray(x[m]), (drawn, data))
        source, _, last, _ = parts(one.next_obs)
        ends = [0, *np.flatnonzero(one.last) + 1]
        assert len(ends) > 4
        for start, end in itertools.pairwise(ends):
            entry = sources.index(translation.text(np.nonzero(source[start])[1]))
            assert end - start == task.length[entry]
            right = task.target[entry, : end - start]
            assert np.array_equal(last[start:end].argmax(-1), right)
            earned = (one.action[start:end] == right) / (end - start)
            np.testing.assert_allclose(one.reward[start:end], earned, atol=1e-6)


def test_what_was_written_as_words():
    keys = jax.random.split(jax.random.key(0), 1)
    data = wander(family())(keys, stacked("de"))
    one = jax.tree.map(lambda x: x[0], data)
    episodes = translation.written(task_of("de"), one, env=family().env)
    assert len(episodes) == int(one.last.sum()) > 3
    known = pairs("de")
    for source, target, output in episodes:
        assert known[source] == target
        assert len(output) <= len(target) + 1
    everything = "".join(output for *_, output in episodes)
    until = int(np.flatnonzero(one.last)[-1]) + 1
    assert everything == translation.text(one.action[:until])


def test_chrf_is_sacrebleu_s():
    assert translation.chrf(["viernes", "enero"], ["viernes", "enero"]) == 100
    assert translation.chrf(["xxx"], ["viernes"]) == 0
    assert 0 < translation.chrf(["vierne"], ["viernes"]) < 100


def test_types_are_kept_where_float_is_float64(x64):
    told = family()

    @jax.jit
    def stepped():
        task = told.train(jax.random.key(0))
        obs, state = told.env.reset_env(jax.random.key(1), task)
        next_obs, successor, reward, *_ = told.env.step_env(
            jax.random.key(2), state, told.random_action(jax.random.key(3)), task
        )
        return task, obs, state, next_obs, successor, reward, told.optimal_return(task)

    task, obs, state, next_obs, successor, reward, best = stepped()
    floats = (obs, next_obs, reward, task.cumulative, best)
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float64)}
    before, after = (
        [(x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (state, successor)
    )
    assert before == after
    assert set(before) == {(jnp.dtype(jnp.int32), False)}
    assert task.target.dtype == jnp.int8
    assert not any(x.weak_type for x in (*jax.tree.leaves(task), reward))
    assert jax.tree.structure(task) == jax.tree.structure(told.env.default_params)


def test_equal_settings_are_equal_environments():
    assert Translation(("days",)) == Translation(("days",))
    assert hash(Translation(("days",))) == hash(Translation(("days",)))
    assert Translation(max_length=12) != Translation()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(kinds=("numbrs",)), "kinds='numbrs' is unknown: did you mean 'numbers'"),
        (dict(kinds=()), "must be one or more of"),
        (dict(kinds=("days", "days")), "each once"),
        (dict(max_length=1), "max_length=1 must be at least 2"),
        (dict(max_length=2), "max_length=2 leave no language to train"),
        (dict(horizon=0), "horizon=0 must be at least 1"),
        (dict(feedback="praise"), "feedback='praise' is unknown"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        tasks.make("translation", **settings)


def test_missing_packages_are_named(monkeypatch):
    def without(name, *args, **kwargs):
        if name == "babel":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    real = translation.importlib.import_module
    monkeypatch.setattr(translation.importlib, "import_module", without)
    translation.names.cache_clear()
    with pytest.raises(ImportError, match=r'babel is missing: pip install "jaxmeta\[language\]"'):
        translation.names("en")


def test_tasks_are_imported_without_the_packages():
    code = "import jaxmeta.tasks, sys; assert not {'babel', 'num2words', 'sacrebleu'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


EXCHANGED = jax.jit(translation._exchanged, static_argnums=1)


@given(seed=st.integers(0, 2**31), most=st.integers(1, 13))
@settings(max_examples=30)
def test_sound_laws_exchange_letters_and_nothing_else(seed, most):
    letters = np.asarray(EXCHANGED(jax.random.key(seed), most))
    np.testing.assert_array_equal(letters[letters], np.arange(28))  # an exchange undoes itself
    assert (letters[26:] == [26, END]).all()
    assert (letters != np.arange(28)).sum() in range(0, 2 * most + 1, 2)


def test_with_sound_laws_a_language_is_itself_but_for_its_letters():
    """Lengths, gaps and repeated letters are the language's; how many laws there are is uniform."""
    plain = {int(task.language): task for task in map(task_of, LANGUAGES[:49])}
    drawn = jax.jit(lambda key: tasks.sample_tasks(key, family(sound_laws=2), 300, split="train"))(
        jax.random.key(0)
    )
    changed = []
    for language, target, length in zip(drawn.language, drawn.target, drawn.length, strict=True):
        task = plain[int(language)]
        np.testing.assert_array_equal(length, task.length)
        before, after = np.asarray(task.target).ravel(), np.asarray(target).ravel()
        mapping = {int(b): int(a) for b, a in zip(before, after, strict=True)}
        assert [mapping[int(b)] for b in before] == after.tolist()
        changed.append(sum(a != b for a, b in mapping.items()))
    assert {0, 4} <= set(changed) <= {0, 1, 2, 3, 4}  # a letter that a language lacks is not seen
    assert 0.2 < np.mean(np.array(changed) == 0) < 0.5


@pytest.mark.parametrize("split", ["test", "out_of_distribution"])
def test_languages_that_are_held_out_have_no_sound_laws(split):
    one, other = (
        jax.jit(lambda key, which=which: tasks.sample_tasks(key, which, 20, split=split))(
            jax.random.key(0)
        )
        for which in (family(sound_laws=13), family())
    )
    np.testing.assert_array_equal(one.target, other.target)


def test_too_many_sound_laws_are_refused():
    with pytest.raises(ValueError, match="sound_laws=14 must be at most 13"):
        tasks.make("translation", sound_laws=14)


def test_a_text_has_so_many_names_each_as_likely():
    """Those of a draw are of the language; which they are follows its law; the rest never come."""
    draw = jax.jit(lambda key: tasks.sample_tasks(key, family(num_names=3), 3000, split="test"))
    drawn = draw(jax.random.key(0))
    law = np.diff(np.asarray(drawn.cumulative), axis=1, prepend=0.0)
    np.testing.assert_allclose(np.sort(law)[:, -3:], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(np.sort(law)[:, :-3], 0.0, atol=1e-6)
    chosen = law > 0.1
    assert np.asarray(drawn.length)[chosen].min() > 0
    # Of the 12 months each is as likely.
    months = np.flatnonzero(translation._english(KINDS, L).kind == KINDS.index("months"))
    counts = chosen[:, months].sum(0)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    # One in five is a month at first, more where a language lacks a kind: of names alike it were 1 in 35.
    assert 0.15 < counts.sum() / chosen.sum() < 0.27
    enter = jax.jit(jax.vmap(lambda key, task: family().env.reset_env(key, task)[1].entry))
    entries = np.asarray(enter(jax.random.split(jax.random.key(1), 3000), drawn))
    assert chosen[np.arange(3000), entries].all()


def test_a_language_of_fewer_names_has_them_all():
    cumulative = jnp.array([0.5, 0.5, 0.7, 1.0])
    some = translation._some(jax.random.key(0), cumulative, 5)
    np.testing.assert_allclose(some, [1 / 3, 1 / 3, 2 / 3, 1.0], rtol=1e-6)


def test_names_are_drawn_without_replacement_by_the_law():
    """Of three names with probabilities 1/2, 3/10 and 1/5, two."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    law = np.array([0.5, 0.8, 1.0], np.float32)
    some = jax.jit(jax.vmap(lambda key: translation._some(key, law, 2)))(keys)
    left_out = np.argmin(np.diff(np.asarray(some), axis=1, prepend=0.0), axis=1)
    p = np.array([0.5, 0.3, 0.2])
    pairs = {  # which is left out: the two others in either order
        k: sum(p[i] * p[j] / (1 - p[i]) for i, j in itertools.permutations(set(range(3)) - {k}))
        for k in range(3)
    }
    counts = np.bincount(left_out, minlength=3)
    assert scipy.stats.chisquare(counts, [20_000 * pairs[k] for k in range(3)]).pvalue > 1e-4


def test_a_text_without_a_name_is_refused():
    with pytest.raises(ValueError, match="num_names=0 must be at least 1"):
        tasks.make("translation", num_names=0)
