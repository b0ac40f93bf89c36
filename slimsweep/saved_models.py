"""Loading a saved model from a local folder or an object store."""

import os

from torch import nn

from slimsweep.slimming import hub
from slimsweep.storage import Folder


def load(folder: str | os.PathLike[str] | Folder) -> nn.Module:
    """The model that `save` wrote, in eval mode.

    Args:
        folder: a local path, or a URI of an object store (s3://, gs://).

    Raises:
        RefusedInput: a ValueError: the folder is missing or damaged, or does not hold a model; says what is wrong.
    """
    if not isinstance(folder, Folder):
        if "://" not in str(folder):
            return hub.load(folder)
        folder = Folder(str(folder))
    with folder.local() as fetched:
        return hub.load(fetched)
