"""Acting in environments: one stream, a lifetime of updates, and agents that live across meta-updates."""

from jaxmeta import types
from jaxmeta.rollouts import lifelong
from jaxmeta.rollouts.lifetime import (
    Setup,
    adapt,
    begin,
    begin_streams,
    collect,
    lifetime,
    replay,
    sample,
)
from jaxmeta.rollouts.rollout import begin_stream, rollout

__all__ = [
    "Setup",
    "adapt",
    "begin",
    "begin_stream",
    "begin_streams",
    "collect",
    "lifelong",
    "lifetime",
    "replay",
    "rollout",
    "sample",
]

types.document_fields()
