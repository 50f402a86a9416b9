"""How long programs took to compile, remembered beside jax's cache of compiled programs."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxmeta.runs import records

FILE = "jaxmeta-seconds.json"
MAX_ENTRIES = 500


def key_of(description: Mapping[str, Any]) -> str:
    """A hash of the settings, the jax version and the device: different programs have different hashes."""
    device = jax.devices()[0]
    told = {
        **description,
        "jax": jax.__version__,
        "device": f"{device.platform} {device.device_kind}",
    }
    return hashlib.sha256(records.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def recalled(key: str) -> float | None:
    """Seconds that the program of ``key`` took to compile the last time; None if that is not known."""
    seconds = _read().get(key)
    return float(seconds) if isinstance(seconds, int | float) else None


def remember(key: str, seconds: float) -> None:
    """Keeps ``seconds`` for `recalled`. Nothing is kept without a cache, and a failure to write is no error."""
    path = _path()
    if path is None:
        return
    kept = _read()
    kept.pop(key, None)  # to the end: the oldest entries go first
    kept[key] = round(seconds, 1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        records.replace(path, json.dumps(dict(list(kept.items())[-MAX_ENTRIES:])))


def _path() -> Path | None:
    folder = jax.config.jax_compilation_cache_dir
    return Path(folder) / FILE if folder else None


def _read() -> dict[str, Any]:
    path = _path()
    with contextlib.suppress(OSError, ValueError):
        if path is not None:
            content = json.loads(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}
