"""Datasets of experience: histories of learners, windows of them for training, and files.

`record` lives through lifetimes of any learner, and `mixtures` through an expert's that acts at random less and less. `windows`
cuts pieces of histories for algorithms that learn from data. `create` writes histories to a folder shard by shard, `load` opens it, and
`stream` trains on datasets that are larger than the memory. `quality` has the learners' returns and the share of the observations that they saw.
"""

from jaxmeta import types
from jaxmeta.datasets import files, histories
from jaxmeta.datasets.files import Dataset, DatasetError, Writer, create, load
from jaxmeta.datasets.histories import Histories, mixtures, record, thin
from jaxmeta.datasets.quality import Quality, quality
from jaxmeta.datasets.windows import stream, windows

__all__ = [
    "Dataset",
    "DatasetError",
    "Histories",
    "Quality",
    "Writer",
    "create",
    "files",
    "histories",
    "load",
    "mixtures",
    "quality",
    "record",
    "stream",
    "thin",
    "windows",
]

types.document_fields()
