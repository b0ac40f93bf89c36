"""`python -m slimsweep.service.make_download RUN POINT FORMAT`: one file to download, in the run's folder.

The model is exported and checked as `slimsweep export` does, and the file is put into the run's folder whole or not at all. A
timm folder is packed as one zip file.
"""

import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast, get_args

from slimsweep.errors import RefusedInput, exit_code
from slimsweep.ledger.files import MODEL_CONFIG, MODEL_WEIGHTS
from slimsweep.ledger.run import Run
from slimsweep.storage import Folder
from slimsweep.terminal import end_command, plain_console, say

Kind = Literal["timm", "onnx", "pt2"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST = 1 << 30  # bytes of weights


def file_name(point: str, kind: Kind) -> str:
    """The name of a point's file in a format, as `slimsweep export` names it."""
    return f"{point}-timm.zip" if kind == "timm" else f"{point}.{kind}"


def refuse_too_large(run: Run, point: str) -> None:
    """Refuse a model whose weights are larger than LARGEST.

    Raises:
        RefusedInput: it is, or there is no such model.
    """
    weights, config = (f"{run.model_path(point)}/{name}" for name in (MODEL_WEIGHTS, MODEL_CONFIG))
    try:
        size, _ = run.folder.size(weights), run.folder.size(config)
    except FileNotFoundError as missing:
        raise RefusedInput(f"{run.uri} has no model {point!r}: its folder was deleted, or it was never trained") from missing
    if size > LARGEST:
        raise RefusedInput(
            f"the weights of {point} are {size / 2**30:.1f} GiB, and downloads are limited to {LARGEST / 2**30:.0f} GiB: use "
            "`slimsweep export`"
        )


def make(run: Run, point: str, kind: Kind) -> str:
    """Write the file of a point in a format; returns what was checked, in words.

    Raises:
        RefusedInput: there is no such model, or it is too large.
        ExportError: it cannot be exported, or the result does not compute the same.
    """
    refuse_too_large(run, point)

    from slimsweep.tools.export import export_checked

    with tempfile.TemporaryDirectory(prefix="slimsweep-") as scratch, (run.models / point).local() as model:
        target = Path(scratch, point if kind == "timm" else file_name(point, kind))
        made = export_checked(model, kind, target)
        if kind == "timm":
            packed = Path(scratch, file_name(point, kind))
            with zipfile.ZipFile(packed, "w") as archive:  # weights do not become smaller
                for file in sorted(target.iterdir()):
                    archive.write(file, f"{point}/{file.name}")
        else:
            packed = target
            if others := [file.name for file in Path(scratch).iterdir() if file != target]:
                raise RefusedInput(
                    f"{point} needs further files beside its {kind} file ({', '.join(others)}): use `slimsweep export`"
                )
        try:
            run.products.write_export(packed.name, packed.read_bytes())
        except OSError as problem:
            raise RefusedInput(
                f"{packed.name} cannot be kept in {run.uri} ({problem.strerror or problem}): use `slimsweep export --output`"
            ) from problem
    return made.text


def main(argv: Sequence[str] | None = None) -> int:
    """Make the file that the arguments name; returns the exit code (`slimsweep.errors`)."""
    uri, point, kind = sys.argv[1:] if argv is None else argv
    console = plain_console()
    return exit_code(lambda: say(console, make(Run(Folder(uri).confined()), point, cast(Kind, kind))), console)


if __name__ == "__main__":
    end_command(main())
