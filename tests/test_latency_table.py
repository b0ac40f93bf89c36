"""Times of structures as CSV: what programs, people and spreadsheets write is read, or refused with line and column."""

import math
from pathlib import Path

import pytest

from slimsweep.errors import RefusedInput
from slimsweep.latency.table import COLUMNS, Time, by_setting, read_times, write_times
from slimsweep.latency.time_on_device import COLUMNS as OF_THE_SCRIPT

FIRST = "0123456789ab"
JETSON = Time(FIRST, 8.25, 0.02, "Jetson Orin Nano", "TensorRT 10.3", 1, "fp16")
PHONE = Time("ba9876543210", 31.5, None, "Pixel 8, CPU", "LiteRT", 1, "float32", "machine busy")
HEADER = "structure,ms,spread,device,runtime,batch_size,dtype"
ROW = f"{FIRST},8.25,0.02,Jetson Orin Nano,TensorRT 10.3,1,fp16"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "times.csv"


def test_what_is_written_is_read_back(file: Path) -> None:
    write_times(file, [JETSON, PHONE])
    assert read_times(file) == [JETSON, PHONE]
    write_times(file, [Time(**{**vars(JETSON), "spread": math.nan})])
    assert read_times(file)[0].spread is None
    assert [path.name for path in file.parent.iterdir()] == ["times.csv"]


def test_the_script_for_devices_writes_the_columns_that_are_read() -> None:
    assert OF_THE_SCRIPT == COLUMNS


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\n{ROW}\n",
        f"{HEADER}\r\n{ROW}\r\n",
        f"\ufeff{HEADER}\r\n{ROW}\r\n",
        f"# trtexec, 10 October\n\n{HEADER}\n# the dense model\n{ROW}\n\n",
        f"{HEADER},note,mean\n{ROW},warm room,8.3\n",
        f"Structure, MS, spread, device, runtime, Batch_Size, dtype\n{ROW.replace(',', ', ')}\n",
        f'{HEADER}\n{FIRST.upper()},8.25,0.02,"Jetson Orin Nano","TensorRT 10.3",1,fp16\n,,,,,,\n',
        f"{HEADER}\n{ROW}\n".replace(",", "\t"),
        f"{HEADER}\n{ROW}\n".replace(",", ";").replace("8.25", "8,25").replace("0.02", "0,02"),
        "dtype,batch_size,runtime,device,spread,ms,structure\n" + ",".join(reversed(ROW.split(","))),
    ],
    ids=["plain", "CRLF", "byte order mark", "comments", "more columns", "blanks", "quotes", "tabs", "semicolons", "order"],
)
def test_ways_to_write_the_same_time(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    assert read_times(file) == [JETSON]


def test_a_spread_may_be_missing(file: Path) -> None:
    file.write_text(f"structure,ms,device,runtime,batch_size,dtype\n{ROW.replace('0.02,', '')}\n")
    assert read_times(file) == [Time(**{**vars(JETSON), "spread": None})]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no line that names its columns"),
        (f"{HEADER}\n", "has no row of times"),
        (f"{ROW}\n", "has no column 'structure'"),
        (f"{ROW}\n{ROW}\n", "it is a row of times, so put such a line above it"),
        ("structure,time\n", "no column 'ms' and none 'device'"),
        (f"{HEADER},ms\n{ROW},9\n", "two columns 'ms'"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('8.25', 'fast')}\n", "line 3: ms is 'fast', which is no number"),
        (f"# note\n{HEADER}\n{ROW.replace('8.25', '8.25 ms')}\n", "line 3: ms is '8.25 ms'"),
        (f"{HEADER}\n{ROW.replace('8.25', '0')}\n", "line 2: ms is '0'; a time must be above 0"),
        (f"{HEADER}\n{ROW.replace('8.25', 'nan')}\n", "line 2: ms is 'nan'"),
        (f"{HEADER}\n{ROW.replace('8.25', '1e300')}\n", "line 2: ms is '1e300', which no call takes: give milliseconds"),
        (f"{HEADER}\n{ROW.replace('8.25', '1e-300')}\n", "line 2: ms is '1e-300', which no call takes"),
        (f"{HEADER}\n{ROW.replace('0.02', '1e400')}\n", "line 2: spread is '1e400', which is no number"),
        (f"{HEADER}\n{ROW.replace(',1,', ',1e300,')}\n", "line 2: batch_size is '1e300'; it must be a whole number"),
        (f"{HEADER}\n{ROW.replace('Nano', 'N' * 200_000)}\n", r"line 2 cannot be read \(field larger than"),
        # A comma of thousands is not read as the decimal one.
        (f"{HEADER}\n{ROW}\n".replace(",", ";").replace("8.25", "1,234"), "line 2: ms is '1,234', which is no number"),
        (f"{HEADER}\n{ROW.replace('8.25', '8,25')}\n", "line 2 has 8 fields, the first line has 7"),
        (f"{HEADER}\n{ROW.replace('0.02', '-1')}\n", "line 2: spread is '-1'"),
        (f"{HEADER}\n{ROW.replace(',1,', ',1.5,')}\n", "line 2: batch_size is '1.5'; it must be a whole number"),
        (f"{HEADER}\n{ROW.replace(',fp16', ',')}\n", "line 2: dtype is empty"),
        (f"{HEADER}\n{ROW.replace(FIRST, '1.23457E+11')}\n", "line 2: structure is '1.23457E[+]11', which is no id"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('8.25', '9')}\n", f"line 3: structure {FIRST} stands in line 2 already"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(RefusedInput, match=said) as refused:
        read_times(file)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_workbook_or_another_encoding_is_refused(file: Path) -> None:
    file.write_bytes(f"{HEADER}\n{ROW}\n".encode("utf-16"))
    with pytest.raises(RefusedInput, match="save it as CSV UTF-8"):
        read_times(file)
    file.write_bytes(f"{HEADER}\n{ROW.replace('Nano', 'für alle')}\n".encode("latin-1"))
    with pytest.raises(RefusedInput, match="line 2 is not UTF-8"):
        read_times(file)
    with pytest.raises(RefusedInput, match="cannot be read"):
        read_times(file.with_name("other.csv"))


def test_times_of_several_settings_are_told_apart() -> None:
    other = Time(**{**vars(JETSON), "batch_size": 8})
    settings = by_setting([JETSON, other, PHONE])
    assert [setting.label for setting in settings] == [
        "Jetson Orin Nano, TensorRT 10.3, batch 1, fp16",
        "Jetson Orin Nano, TensorRT 10.3, batch 8, fp16",
        "Pixel 8, CPU, LiteRT, batch 1, float32",
    ]


@pytest.mark.parametrize("word", ["", "no", "No", "0", "false", "-", "None"])
def test_a_person_may_say_that_a_machine_was_not_busy(file: Path, word: str) -> None:
    file.write_text(f"{HEADER},busy\n{ROW},{word}\n")
    assert read_times(file) == [JETSON]
    file.write_text(f"{HEADER},busy\n{ROW},a build was running\n")
    assert read_times(file)[0].busy == "a build was running"
