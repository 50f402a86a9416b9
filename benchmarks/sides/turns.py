"""How a side of a comparison answers: a line of JSON for each line of JSON, until there are no more.

Imports nothing of this project: a peer's environment does not have it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def settings() -> dict[str, Any]:
    """The settings that this side was told."""
    return json.loads(sys.argv[1])


def learn(
    begun: Callable[[int], Any], updated: Callable[[Any], Any], earned: Callable[[int, Any], Any]
) -> None:
    """Answers as a learner, until there are no more questions.

    ``begun(seed)`` and ``updated(state)`` are its states before any update and after one more,
    ``earned(seed, state)`` its return in an evaluation.
    """
    state = begun(0)

    def begin(seed: int) -> dict:
        nonlocal state
        state = begun(seed)
        return {}

    def turn() -> dict:
        nonlocal state
        state = updated(state)
        return {}

    def evaluate(seed: int) -> dict:
        return {"return": float(earned(seed, state))}

    answer({"begin": begin, "turn": turn, "evaluate": evaluate})


def answer(actions: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """Does each action that is asked for, and says how long it took."""
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        began = time.perf_counter(), time.process_time()
        said = actions[question.pop("do")](**question)
        said["seconds"] = time.perf_counter() - began[0]
        said["cpu_seconds"] = time.process_time() - began[1]
        print(json.dumps(said), file=answers, flush=True)
