"""Packs what a GPU machine without a network lacks: `python reports/gpu/pack.py FOLDER`.

The machine is expected to have Python 3.12 with torch, torchvision, pandas, pyarrow, scikit-learn, onnx and pytest, as images
for deep learning do. FOLDER gets the wheels of what else slimsweep imports, in the versions of requirements.lock, and Ray
without its Java, C++ and reinforcement learning parts: below 64 MiB together with the repository. On the machine,
`bash reports/gpu/run.sh FOLDER OUTPUT` unpacks it and measures.
"""

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIMIT = 64 * 2**20  # bytes
PACKED = 42 * 2**20  # bytes that FOLDER has at most
PYTHON = "3.12"
GLIBC = (34, 31, 28, 27, 24, 17, 12, 5)  # pip matches these numbers exactly
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64", "manylinux1_x86_64"]

# Imported by slimsweep or by its tests, and absent on the machine.
WHEELS = [
    "timm",
    "pydantic",
    "pydantic-core",
    "pydantic-settings",
    "annotated-types",
    "typing-inspection",
    "python-dotenv",
    "plotly",
    "narwhals",
    "wrapt",
    "rich",
    "torch-pruning",
    "pytest-randomly",
    "pytest-timeout",
    "pytest-xdist",
    "execnet",
]
# Imported by Ray.
OF_RAY = [
    "jsonschema",
    "jsonschema-specifications",
    "referencing",
    "rpds-py",
    "cloudpickle",
    "tensorboardx",
    "msgpack",
    "smart-open",
    "six",
    "aiohttp-cors",
    "colorful",
    "opencensus",
    "opencensus-context",
    "google-api-core",
    "google-auth",
    "googleapis-common-protos",
    "proto-plus",
    "pyasn1",
    "pyasn1-modules",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-proto",
    "opentelemetry-exporter-prometheus",
    "opentelemetry-semantic-conventions",
]
# Ray's three large programs hold much of the same code, tens of MiB apart, and are of x86-64.
LZMA = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 192 * 2**20}]
# Parts of Ray's wheel that a sweep never starts.
NOT_OF_RAY = ("ray/jars/", "ray/rllib/", "ray/llm/", "ray/cpp/", "ray/serve/")


def locked_version(name: str) -> str:
    """The version of a package in requirements.lock.

    Raises:
        LookupError: it is not there.
    """
    found = re.search(rf"^{re.escape(name)}==([^ ;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(f"requirements.lock has no {name}")
    return found[1]


def download(names: Iterable[str], folder: Path) -> None:
    """Put the wheels of packages for the machine into a folder."""
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = [f"{name}=={locked_version(name)}" for name in names]
    options = ["--no-deps", "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp", *platforms]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(folder), *wanted], check=True)


def pack_ray(target: Path) -> None:
    """Write Ray without the parts that a sweep never starts as a tar.xz, to be unpacked beside other packages."""
    with tempfile.TemporaryDirectory() as folder:
        download(("ray",), Path(folder))
        wheel = next(Path(folder).glob("ray-*.whl"))
        unpacked = Path(folder, "unpacked")
        with zipfile.ZipFile(wheel) as archive:
            kept = [
                info
                for info in archive.infolist()
                if not info.filename.startswith(NOT_OF_RAY)
                and "/tests/" not in info.filename
                and not info.filename.endswith(".map")
            ]
            for info in kept:
                path = Path(archive.extract(info, unpacked))
                if mode := info.external_attr >> 16:
                    path.chmod(mode & 0o777)
        with lzma.open(target, "wb", filters=LZMA) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for entry in sorted(unpacked.iterdir()):
                tar.add(entry, entry.name)


def bytes_of_sources() -> int:
    """The size of the repository without its history."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sum((ROOT / name).lstat().st_size for name in listed.split("\0") if name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="is emptied first")
    folder: Path = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    download((*WHEELS, *OF_RAY), folder)
    pack_ray(folder / "ray.tar.xz")
    packed, sources = sum(path.stat().st_size for path in folder.iterdir()), bytes_of_sources()
    print(f"{packed / 2**20:.1f} MiB in {folder}, and {sources / 2**20:.1f} MiB of sources")
    if packed > PACKED or packed + sources > LIMIT:
        print(f"that is more than {PACKED // 2**20} MiB packed, or {LIMIT // 2**20} MiB together")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
