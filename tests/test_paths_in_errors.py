"""Paths that are not UTF-8, as Linux allows them: refused where they cannot work, and readable in a traceback."""

from pathlib import Path

import pytest

from slimsweep.errors import RefusedInput, written
from slimsweep.ledger.run import Run
from slimsweep.storage import Folder

NOT_UTF8 = "/data/ima\udcffges"  # what Python makes of a byte that is not UTF-8


@pytest.mark.parametrize("path", [NOT_UTF8, f"s3://bucket/{NOT_UTF8}", "/data/a\0b"])
def test_a_folder_that_cannot_be_opened_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(RefusedInput, match=r"(?s)data.*is not UTF-8"):
        Folder(path)


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1"])
def test_a_locale_whose_file_names_are_not_utf8_is_named(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files would be written under one name and read under another."""
    monkeypatch.setattr("slimsweep.storage.sys.getfilesystemencoding", lambda: encoding)
    monkeypatch.setattr("slimsweep.storage.os.fsencode", lambda path: path.encode(encoding, "surrogateescape"))
    assert Folder(tmp_path).uri == str(tmp_path)
    with pytest.raises(RefusedInput, match=f"größe.*{encoding}: set PYTHONUTF8=1"):
        Folder(tmp_path / "größe")


def test_a_traceback_that_names_such_a_path_is_written(tmp_path: Path) -> None:
    """Neither the run's log nor the temporary file may fail over a file's name: nobody would see the error."""
    text = f"OSError: {NOT_UTF8}"
    log = written(text, Run(tmp_path / "mine").logs.add_error)
    file = written(text, None)
    assert log is not None
    assert file is not None
    assert Path(log) == tmp_path / "mine" / "errors.log"
    for path in (log, file):
        assert Path(path).read_text(encoding="utf-8").strip() == r"OSError: /data/ima\udcffges"
    Path(file).unlink()
