"""A saved model goes to the Hugging Face hub: weights, config.json and card, as one commit."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import timm
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from slimsweep import __version__
from slimsweep.errors import RefusedInput, SlimsweepError
from slimsweep.ledger.files import MODEL_CARD, MODEL_CONFIG, MODEL_WEIGHTS
from slimsweep.ledger.model_card import card_of_folder, origin_of_saved
from slimsweep.saved_models import load
from slimsweep.storage import Folder

FILES = (MODEL_WEIGHTS, MODEL_CONFIG, MODEL_CARD)


class PushFailed(SlimsweepError, RuntimeError):
    """The hub cannot be reached, or did not take the model; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """Where a model is on the hub."""

    url: str
    repository: str
    private: bool
    size: int  # bytes, of all files

    @property
    def text(self) -> str:
        """Who can see it, and the line that loads it, in words."""
        seen = "only its owner and who they let in see it" if self.private else "everybody can see it"
        return (
            f"{', '.join(FILES)}: {self.size / 2**20:.1f} MiB; {seen}; after `import slimsweep`: "
            f'timm.create_model("hf-hub:{self.repository}", pretrained=True)'
        )


def push_model(model_dir: str | os.PathLike[str], repository: str, *, public: bool = False) -> Pushed:
    """Upload a saved model to the Hugging Face hub, for `timm.create_model("hf-hub:OWNER/NAME", pretrained=True)`.

    Uploads the files as they are, so that the model that is loaded from there is exactly this one. Of the folder's files only
    weights and config.json go along, and the card (README.md): the one in the folder where somebody changed it, else a new one.

    Args:
        model_dir: a folder that `slimsweep.save` wrote: a local path, or a URI of an object store.
        repository: OWNER/NAME on the hub. Made where it is missing; one that is there gets a new commit and stays as public
            as it is.
        public: make a new repository public.

    Raises:
        RefusedInput: a ValueError: it is no saved model, the repository's name is no OWNER/NAME, or there is no token.
        PushFailed: the hub cannot be reached, or did not take it.
    """
    _check_name(repository)
    if "://" in str(model_dir):
        with Folder(str(model_dir)).local() as fetched:
            return push_model(fetched, repository, public=public)
    source = Path(model_dir).expanduser()
    model = load(source)
    if get_token() is None:
        raise RefusedInput("there is no token for the hub: set the variable HF_TOKEN, or log in once with `hf auth login`")
    of_run = origin_of_saved(str(source.resolve()))
    card = card_of_folder(model, source, name=repository.rpartition("/")[2], source=f"hf-hub:{repository}", of_run=of_run)
    api = HfApi(library_name="timm", library_version=timm.__version__)
    with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
        for name in (MODEL_WEIGHTS, MODEL_CONFIG):
            shutil.copyfile(source / name, Path(folder, name))
        Path(folder, MODEL_CARD).write_text(card, encoding="utf-8")
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        try:
            api.create_repo(repository, private=not public, exist_ok=True)
            private = bool(api.model_info(repository).private)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                allow_patterns=list(FILES),
                commit_message=f"Model saved by slimsweep {__version__}",
            )
        except OfflineModeIsEnabled as problem:
            raise PushFailed("the hub is not asked, since HF_HUB_OFFLINE is set: unset it to push") from problem
        except HfHubHTTPError as problem:
            raise PushFailed(_refusal(problem, repository)) from problem
        except (HTTPError, OSError) as problem:
            reason = " ".join(str(problem).split()) or type(problem).__name__
            raise PushFailed(
                f"the hub at {constants.ENDPOINT} cannot be reached ({reason}): check the network, or HF_ENDPOINT"
            ) from problem
    return Pushed(url=f"{constants.ENDPOINT}/{repository}", repository=repository, private=private, size=size)


def _check_name(repository: str) -> None:
    """Refuse what is no OWNER/NAME, before anything is read or sent."""
    try:
        if repository.count("/") != 1 or not all(repository.split("/")):
            raise HFValidationError("it must be OWNER/NAME")
        validate_repo_id(repository)
    except HFValidationError as problem:
        reason = " ".join(str(problem).split()).rstrip(".")
        raise RefusedInput(
            f"the repository is {repository!r}, and the hub has no such names ({reason}): "
            "give OWNER/NAME, such as my-name/deit-s-50"
        ) from problem


def _refusal(problem: HfHubHTTPError, repository: str) -> str:
    """What the hub answered, in one sentence with the way out."""
    status = problem.response.status_code if problem.response is not None else 0
    said = " ".join((problem.server_message or "").split())
    if status == 401:
        return f"the hub does not know this token{f' ({said})' if said else ''}: renew HF_TOKEN, or log in with `hf auth login`"
    if status == 403 or isinstance(problem, RepositoryNotFoundError):
        return (
            f"this token may not write to {repository}{f' ({said})' if said else ''}: take a token with the right to write, "
            "or a repository of your own"
        )
    reason = said or " ".join(str(problem).split())
    return f"the hub did not take {repository} (HTTP status {status}: {reason})"
