"""Saved models, wherever they are."""

import os

from torch import nn

from slimsweep.slimming import hub
from slimsweep.storage import Folder


def load(folder: str | os.PathLike[str] | Folder) -> nn.Module:
    """The model that `save` wrote, in eval mode; it needs nothing but the folder, here or on an object store (s3://, gs://).

    Raises:
        ValueError: the folder is missing, damaged, or of something else; says what is wrong.
    """
    if not isinstance(folder, Folder):
        if "://" not in str(folder):
            return hub.load(folder)
        folder = Folder(str(folder))
    with folder.local() as fetched:
        return hub.load(fetched)
