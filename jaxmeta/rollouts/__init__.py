"""Acting in environments: one stream, a lifetime of updates, and agents that live across meta-updates."""

from jaxmeta.rollouts import lifelong
from jaxmeta.rollouts.lifetime import adapt, begin, begin_streams, experience, lifetime, replay
from jaxmeta.rollouts.rollout import begin_stream, rollout

__all__ = [
    "adapt",
    "begin",
    "begin_stream",
    "begin_streams",
    "experience",
    "lifelong",
    "lifetime",
    "replay",
    "rollout",
]
