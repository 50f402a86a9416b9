"""Interactive translation, character by character: each task is a language.

Foster, Isabelle & Plamondon 1997, "Target-text mediated interactive machine translation";
Barrachina et al. 2009, "Statistical approaches to computer-assisted translation". The agent sees an
English name and proposes the next character of its translation. The user accepts or corrects it, so
the written text is always right. Names are those of numbers up to 99 (num2words) and, from the
Unicode Common Locale Data Repository (babel), of months, days, currencies and territories, in the
letters a to z and the space.
"""

import dataclasses
import functools
import importlib
import string
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from jaxmeta import checks
from jaxmeta.tasks.family import Sampler, TaskFamily
from jaxmeta.types import Trajectory

KINDS = ("numbers", "months", "days", "currencies", "territories")

ALPHABET = string.ascii_lowercase + " "
END = len(ALPHABET)
"""The number of the end, the character after a name's last. Characters are numbered a to z, the
space, the end."""
NUM_CHARACTERS = len(ALPHABET) + 1
NUM_LETTERS = len(string.ascii_lowercase)

SPLITS: dict[str, dict[str, str]] = {
    "train": {
        "Germanic": "af da de frr gsw is ksh nds nl nn no wae",
        "Romance": "an ast co es fr it lij lld oc pt rm ro vec",
        "Slavic": "bs cs dsb hr hsb pl szl",
        "Celtic": "br ga gd",
        "Baltic": "lt",
    },
    "test": {
        "Germanic": "fo fy lb sv",
        "Romance": "ca fur gl sc scn",
        "Slavic": "sk sl",
        "Celtic": "cy",
        "Baltic": "lv",
    },
    "out_of_distribution": {
        "Albanian": "sq",
        "Iranian": "ku",
        "Uralic": "et fi hu se smn",
        "Turkic": "az tk tr uz",
        "Basque": "eu",
        "Austronesian": "bew id jv mg mi ms to",
        "Austroasiatic": "vi",
        "Tai": "za",
        "Bantu": "asa bas bez cgg dav ebu ewo guz jmc kam kde ki ksb ksf lag lg ln lu luy mer nd nmg "
        "nyn rn rof rwk sbp seh sw vun xh xog yav zu",
        "Gur": "blo",
        "Kwa": "ak gaa",
        "Volta-Niger": "yo",
        "Mande": "bm",
        "Senegambian": "ff wo",
        "Ubangian": "sg",
        "Songhay": "dje khq ses twq",
        "Nilotic": "mas saq teo",
        "Chadic": "ha mua",
        "Berber": "kab rif tzm",
        "Cushitic": "om so",
        "Semitic": "mt",
        "Khoekhoe": "naq",
        "Quechuan": "qu",
        "Tupian": "yrl",
        "Macro-Jê": "kgp",
        "Eskaleut": "kl",
    },
}
"""Languages of each split (ISO 639) by family, or branch of Indo-European.

Test languages are other languages of the training families; dialects of one language are in one
split. Left out are creoles, constructed languages, and languages in which most names are the
English ones.
"""

FAMILY = {
    language: family
    for split in SPLITS.values()
    for family, languages in split.items()
    for language in languages.split()
}
"""Family of each language, by its code."""
LANGUAGES = tuple(FAMILY)
"""All codes; ``TranslationParams.language`` is an index into them."""

LETTERS = str.maketrans(
    {
        **dict(zip("øłıđðħŧɨʉəǝɛɔɩʋʊŋɓɗɖƙƴɣɲƒ", "oliddhtiueeeoivunbddkygnf", strict=True)),
        **{"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th"},
        **dict.fromkeys("-‑–’'ʼʻ‘`´.", " "),
        "·": "",
    }
)
"""Letters that Unicode does not decompose, and marks between the parts of a name, which become
spaces."""

SHARE = 3
"""A language is included if at least one in ``SHARE`` English names has a translation that fits."""

AHEAD = 3
"""Characters of the source that are shown from the present place of the translation on."""


@struct.dataclass
class TranslationParams:
    """The task: a language with I names. Names that the language lacks have length 0 and are never drawn."""

    language: jax.Array
    """``[]``, int32: index in `LANGUAGES`, for information; -1 is English."""
    target: jax.Array
    """``[I, L]``, int8: the translations, padded with ends."""
    length: jax.Array
    """``[I]``, int32: characters of each translation, the end included."""
    cumulative: jax.Array
    """``[I]``, cumulative probabilities of the names."""


@struct.dataclass
class TranslationState:
    """The present name and the translation so far."""

    entry: jax.Array
    """``[]``, int32: index of the name."""
    time: jax.Array
    """``[]``, int32: characters written so far."""
    last: jax.Array
    """``[]``, int32: the last written character; -1 at the start."""
    distance: jax.Array
    """``[L]``, edit distances of the written text from the source's first 0 .. L - 1 characters."""


@dataclasses.dataclass(frozen=True)
class Translation(environment.Environment[Any, Any]):
    """The environment of the family. Environments with equal settings are equal and share compiled programs.

    An episode is one name. Its kind is uniform over the kinds that the language has, and the name
    is uniform within the kind. Observations are the concatenation of ``[L - 1, 27]`` (the English
    name, one-hot), ``[3, 28]`` (the English name's characters at the present place of the
    translation and the next two), ``[28]`` (the last written character) and ``[kinds]``. The place
    is the length at which the English name's beginning is nearest to the written text by edit
    distance: Wagner & Fischer 1974, "The string-to-string correction problem".

    The action is the next character. The right character earns 1 / length, so a return is the share
    of right characters. The end must be proposed like any other character; it terminates the
    episode.
    """

    kinds: tuple[str, ...] = KINDS
    """Kinds of names."""
    max_length: int = 14
    """L, the most characters of a name, the end included, in both languages."""
    horizon: int = 14
    """Time limit of an episode, in characters."""
    feedback: str = "correction"
    """The characters that are shown as written: ``"correction"``, the right ones; ``"reward"``, the
    agent's own."""

    @property
    def default_params(self) -> TranslationParams:
        """The task of English into English."""
        english = _english(self.kinds, self.max_length)
        return _task(_table(-1, english.source, english.kind))

    def reset_env(self, key: jax.Array, params: TranslationParams) -> tuple[jax.Array, Any]:
        state = TranslationState(
            entry=_draw(key, params.cumulative),
            time=jnp.zeros((), jnp.int32),
            last=jnp.full((), -1, jnp.int32),
            distance=jnp.arange(self.max_length, dtype=jnp.int32),
        )
        return self._observed(state), state

    def step_env(
        self, key: jax.Array, state: TranslationState, action: jax.Array, params: TranslationParams
    ) -> tuple[jax.Array, TranslationState, jax.Array, jax.Array, dict]:
        length = params.length[state.entry]
        right = params.target[state.entry, state.time].astype(jnp.int32)
        reward = jnp.where(action == right, 1.0 / length, 0.0).astype(float)
        written = right if self.feedback == "correction" else action.astype(jnp.int32)
        state = TranslationState(
            entry=state.entry,
            time=state.time + 1,
            last=written,
            distance=_appended(state.distance, self._source(state), written),
        )
        return self._observed(state), state, reward, state.time >= length, {}

    def _source(self, state: TranslationState) -> jax.Array:
        sources = jnp.asarray(_english(self.kinds, self.max_length).source)
        return sources[state.entry].astype(jnp.int32)

    def _observed(self, state: TranslationState) -> jax.Array:
        source = self._source(state)
        places = jnp.arange(self.max_length)
        # Among equally near places, take the one closest to the translation's length.
        detour = jnp.abs(places - state.time) / self.max_length
        place = jnp.argmin(state.distance.astype(detour.dtype) + detour)
        ahead = jnp.take(source, place + jnp.arange(AHEAD), mode="fill", fill_value=END)
        kind = jnp.asarray(_english(self.kinds, self.max_length).kind)[state.entry]
        parts = [
            jax.nn.one_hot(source[:-1], END, dtype=float),
            jax.nn.one_hot(ahead, NUM_CHARACTERS, dtype=float),
            jax.nn.one_hot(state.last, NUM_CHARACTERS, dtype=float),
            jax.nn.one_hot(kind, len(self.kinds), dtype=float),
        ]
        return jnp.concatenate([part.reshape(-1) for part in parts])

    def is_truncated(self, state: TranslationState, params: TranslationParams) -> jax.Array:
        return state.time >= self.horizon

    @property
    def ends_by(self) -> int:
        """The step by which every episode has ended."""
        return self.horizon

    @property
    def name(self) -> str:
        return "Translation"

    def action_space(self, params: TranslationParams | None = None) -> spaces.Discrete:
        return spaces.Discrete(NUM_CHARACTERS)

    def observation_space(self, params: TranslationParams) -> spaces.Box:
        size = (self.max_length - 1) * END + (AHEAD + 1) * NUM_CHARACTERS + len(self.kinds)
        return spaces.Box(0.0, 1.0, (size,), jnp.float32)


def optimal_return(task: TranslationParams, *, horizon: int) -> jax.Array:
    """Expected return of an agent that knows the language, ``[]``: 1 if the horizon cuts off no name."""
    law = jnp.diff(task.cumulative, prepend=0.0)
    share = jnp.minimum(horizon, task.length) / jnp.maximum(task.length, 1)
    return jnp.sum(law * share)


def text(characters: Any) -> str:
    """The text of characters given by their numbers ``[T]``; ends are left out."""
    return "".join(ALPHABET[int(x)] for x in characters if x != END)


def written(
    task: TranslationParams, trajectory: Trajectory, *, env: Translation
) -> list[tuple[str, str, str]]:
    """Source, translation and the agent's proposals in each whole episode of one stream ``[T]``."""
    sources = [text(source) for source in _english(env.kinds, env.max_length).source]
    size = (env.max_length - 1) * END
    shown = np.asarray(trajectory.timestep.obs)[:, :size].reshape(-1, env.max_length - 1, END)
    ends = np.flatnonzero(trajectory.last) + 1
    episodes = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        source = text(np.nonzero(shown[start])[1])
        target = text(task.target[sources.index(source)])
        episodes.append((source, target, text(trajectory.action[start:end])))
    return episodes


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """sacrebleu's chrF of all texts together, 0 to 100: Popović 2015, "chrF: character n-gram F-score".

    Raises:
        ImportError: sacrebleu is not installed.
    """
    metric = _package("sacrebleu").CHRF()
    return metric.corpus_score(list(hypotheses), [list(references)]).score


def spelt(name: str) -> str | None:
    """A name in a to z and the space, without accents; None if that alphabet cannot write it."""
    plain = unicodedata.normalize("NFKD", name.lower().translate(LETTERS))
    letters = "".join(x for x in plain if not unicodedata.combining(x))
    words = " ".join(letters.split())
    return words if words and set(words) <= set(ALPHABET) else None


@functools.cache
def names(language: str) -> dict[tuple[str, Any], str]:
    """The names of ``language`` (a code of `LANGUAGES`, or ``"en"``), `spelt`: ``(kind, which) -> name``.

    Raises:
        ImportError: babel or num2words is not installed.
    """
    babel, num2words = _package("babel"), _package("num2words")
    locale = babel.Locale.parse(language)
    counted = range(100) if language in num2words.CONVERTER_CLASSES else ()
    found = {
        "numbers": {i: num2words.num2words(i, lang=language) for i in counted},
        "months": locale.months["stand-alone"]["wide"],
        "days": locale.days["stand-alone"]["wide"],
        "currencies": locale.currencies,
        "territories": locale.territories,
    }
    letters = {(kind, i): spelt(x) for kind in KINDS for i, x in sorted(found[kind].items())}
    return {which: name for which, name in letters.items() if name is not None}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise checks.missing(name, "language") from error


class English(NamedTuple):
    """The I English names that fit into the length."""

    which: tuple[tuple[str, Any], ...]
    """Kind and key of each name."""
    kind: np.ndarray
    """``[I]``, int32: index of each name's kind."""
    source: np.ndarray
    """``[I, L]``, int8: the names, padded with ends."""


@functools.cache
def _english(kinds: tuple[str, ...], max_length: int) -> English:
    fit = {
        name: which
        for which, name in names("en").items()
        if which[0] in kinds and len(name) < max_length
    }
    kind = np.array([kinds.index(kind) for kind, _ in fit.values()], np.int32)
    return English(tuple(fit.values()), kind, _characters(fit, max_length))


def _characters(words: Any, max_length: int) -> np.ndarray:
    """The words as numbers, int8 ``[I, L]``, padded with ends; a word that is too long becomes ends only."""
    fit = [word if len(word) < max_length else "" for word in words]
    rows = [[*map(ALPHABET.index, word), *[END] * (max_length - len(word))] for word in fit]
    return np.array(rows, np.int8).reshape(-1, max_length)


Table = dict[str, np.ndarray]
"""The leaves of a task by name, in NumPy: cached arrays must not belong to a trace."""


def _table(language: int, target: np.ndarray, kind: np.ndarray) -> Table:
    """The task of translations ``[I, L]``; a row without characters is a missing name."""
    length = np.sum(target != END, axis=1)
    there = length > 0
    in_kind = np.bincount(kind, there)
    law = there / np.maximum(in_kind, 1)[kind]
    return {
        "language": np.asarray(language, np.int32),
        "target": target,
        "length": np.where(there, length + 1, 0).astype(np.int32),
        "cumulative": np.cumsum(law) / np.count_nonzero(in_kind),
    }


@functools.cache
def _lexicons(
    languages: tuple[str, ...], kinds: tuple[str, ...], max_length: int
) -> tuple[Table, ...]:
    """The tables of the languages with enough names."""
    english = _english(kinds, max_length)
    tables = []
    for language in languages:
        known = names(language)
        target = _characters([known.get(which, "") for which in english.which], max_length)
        if SHARE * np.count_nonzero(target[:, 0] != END) >= len(target) > 0:
            tables.append(_table(LANGUAGES.index(language), target, english.kind))
    return tuple(tables)


def _task(table: Table) -> TranslationParams:
    cumulative = jnp.asarray(table["cumulative"], float)
    return TranslationParams(**{**jax.tree.map(jnp.asarray, table), "cumulative": cumulative})


def _exchanged(key: jax.Array, most: int) -> jax.Array:
    """The image of each character when up to ``most`` random pairs of letters are exchanged, int8 ``[28]``."""
    count_key, pair_key = jax.random.split(key)
    count = jax.random.randint(count_key, (), 0, most + 1)
    one, other = jax.random.permutation(pair_key, NUM_LETTERS)[: 2 * most].reshape(2, most)
    drawn = jnp.arange(most) < count
    letters = jnp.arange(NUM_CHARACTERS)
    letters = letters.at[jnp.where(drawn, one, END)].set(jnp.where(drawn, other, END))
    letters = letters.at[jnp.where(drawn, other, END)].set(jnp.where(drawn, one, END))
    return letters.astype(jnp.int8)


def _some(key: jax.Array, cumulative: jax.Array, number: int) -> jax.Array:
    """The cumulative uniform distribution ``[I]`` over up to ``number`` random indices.

    The indices are drawn without replacement from the distribution ``cumulative [I]``: they are
    those with the largest log-probabilities after adding Gumbel noise (Yellott 1977).
    """
    law = jnp.diff(cumulative, prepend=0.0)
    scores = jnp.log(law) + jax.random.gumbel(key, law.shape, law.dtype)
    rank = jnp.argsort(jnp.argsort(-scores))
    drawn = (rank < number) & (law > 0.0)
    return jnp.cumsum(drawn / jnp.sum(drawn)).astype(cumulative.dtype)


def _draw(key: jax.Array, cumulative: jax.Array) -> jax.Array:
    """An index drawn from the cumulative distribution ``cumulative [I]``, int32 ``[]``."""
    u = cumulative[-1] * jax.random.uniform(key, dtype=cumulative.dtype)
    return jnp.sum(cumulative[:-1] <= u, dtype=jnp.int32)


def _appended(distance: jax.Array, source: jax.Array, character: jax.Array) -> jax.Array:
    """Edit distances ``[L]`` from the source's first 0 .. L - 1 characters after one more written character."""
    kept = distance[:-1] + (source[:-1] != character)
    shortest = jnp.minimum(distance + 1, jnp.append(distance[0] + 1, kept))
    places = jnp.arange(distance.shape[0], dtype=distance.dtype)
    return places + jax.lax.cummin(shortest - places)


def translation(
    *,
    kinds: tuple[str, ...] = KINDS,
    max_length: int = 14,
    horizon: int = 14,
    feedback: Literal["correction", "reward"] = "correction",
    sound_laws: int = 0,
    num_names: int | None = None,
) -> TaskFamily:
    """Interactive translation of names: languages of the same families for train and test.

    Out of distribution are languages of other families (see `SPLITS`). A language is left out if
    fewer than a third of the English names have a translation that fits.

    With ``feedback="correction"`` actions do not change later observations, so the right discount
    is 0.

    There are few languages, and one word identifies a language. With sound laws each training task
    is a language of its own, however long one trains: pairs of letters are exchanged throughout it,
    as Latin's p is f in Germanic (Campbell 2013, "Historical linguistics", ch. 2), and only many
    words together tell which pairs. Held-out languages stay as they are.

    With ``num_names`` a task is a text in its language with this many names, which recur. An agent
    with memory need not be corrected twice on one name.

    Args:
        kinds: Kinds of names, of `KINDS`.
        max_length: The most characters of a name, the end included, in both languages; at least 2.
        horizon: Time limit of an episode, in characters.
        feedback: The characters that are shown as written: the right ones or the agent's own.
        sound_laws: The most pairs of letters that are exchanged in a training task, at most 13; the
            number of pairs and the pairs are drawn uniformly.
        num_names: Names of a task, drawn without replacement by the distribution of the language's
            names (all of them if there are fewer); an episode draws one uniformly. None means all
            names of the language.

    Raises:
        ImportError: babel or num2words is not installed.
        ValueError: a setting is out of range, or no language of a split has enough names.
    """
    _check_settings(kinds, max_length, horizon, feedback, sound_laws, num_names)

    def sampler(split: str) -> Sampler:
        most = sound_laws if split == "train" else 0
        return _sampler(split, kinds, max_length, most, num_names)

    return TaskFamily(
        name="translation",
        env=Translation(kinds, max_length, horizon, feedback),
        horizon=horizon,
        train=sampler("train"),
        test=sampler("test"),
        out_of_distribution=sampler("out_of_distribution"),
        optimal_return=functools.partial(optimal_return, horizon=horizon),
    )


def _check_settings(
    kinds: tuple[str, ...],
    max_length: int,
    horizon: int,
    feedback: str,
    sound_laws: int,
    num_names: int | None,
) -> None:
    """Raises ValueError unless the settings of `translation` are in range."""
    for kind in kinds:
        checks.choice("kinds", kind, KINDS)
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"kinds={kinds!r} must be one or more of {KINDS}, each once")
    checks.at_least("max_length", max_length, 2)
    checks.at_least("horizon", horizon, 1)
    checks.choice("feedback", feedback, ("correction", "reward"))
    checks.at_least("sound_laws", sound_laws, 0)
    if sound_laws > NUM_LETTERS // 2:
        raise ValueError(f"sound_laws={sound_laws} must be at most {NUM_LETTERS // 2}, all letters")
    if num_names is not None:
        checks.at_least("num_names", num_names, 1)


def _sampler(
    split: str, kinds: tuple[str, ...], max_length: int, sound_laws: int, num_names: int | None
) -> Sampler:
    """The sampler of a split's languages, with names and letters drawn as `translation` says."""
    languages = " ".join(SPLITS[split].values()).split()
    lexicons = _lexicons(tuple(languages), kinds, max_length)
    if not lexicons:
        raise ValueError(
            f"kinds={kinds!r} and max_length={max_length} leave no language to {split}"
        )
    stacked = jax.tree.map(lambda *x: np.stack(x), *lexicons)

    def whole(key: jax.Array) -> Any:
        index = jax.random.randint(key, (), 0, len(lexicons))
        return jax.tree.map(lambda x: x[index], _task(stacked))

    def text(key: jax.Array) -> Any:
        if num_names is None:
            return whole(key)
        name_key, key = jax.random.split(key)
        task = whole(key)
        return task.replace(cumulative=_some(name_key, task.cumulative, num_names))

    def changed(key: jax.Array) -> TranslationParams:
        law_key, key = jax.random.split(key)
        task = text(key)
        return task.replace(target=_exchanged(law_key, sound_laws)[task.target])

    return changed if sound_laws else text
