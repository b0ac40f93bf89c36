"""Makes mlflow.png, which docs/trackers.md shows: a small sweep of digits in MLflow, as Chromium shows its page.

    python reports/trackers/picture.py           # a minute or two on 2 CPU cores; needs mlflow and playwright, and a Chromium
    python reports/trackers/picture.py FOLDER    # keeps sweep and server there, and goes on with what is there already

MLflow's server has a database of its own, on this machine's own address alone.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from chromium import CHROMIUM
from conftest import free_port

PICTURE = Path(__file__).with_name("mlflow.png")
EXPERIMENT = "digits"
SHOWN = {"metrics": ("macs", "params", "test_top1", "val_top1"), "params": ("budget", "method")}
COLUMNS = [f"{kind}.`{name}`" for kind, names in SHOWN.items() for name in names]
ORDER = ["0", "attributes.`Run Name`", "attributes.`Created`", "attributes.`Duration`", *COLUMNS]
WIDTHS = {"attributes.`Run Name`": 290}  # so that names are not cut
SWEEP = [
    *("--name", "digits", "--budgets", "0.7,0.5,0.35,0.2", "--baselines", "uniform", "--trackers", "mlflow"),
    *("--dense.epochs", "12", "--search.epochs", "6", "--retrain.epochs", "6", "--search.paces", "[{}]"),
]


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of a server whose database and files are in a folder, while the block runs."""
    port = free_port()
    words = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # A process group of its own: the server starts others.
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *words], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + 240
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"MLflow's server does not listen:\n{(folder / 'log').read_text()}")
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def take_picture(server: str, picture: Path) -> None:
    """Write the runs of the experiment, as MLflow shows them, to a PNG file."""
    from mlflow import MlflowClient
    from playwright.sync_api import sync_playwright

    client = MlflowClient(server)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (sweep,) = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
    # What a person has chosen on the page: columns, the oldest first, the sweep unfolded. MLflow keeps that in the browser.
    chosen = {"selectedColumns": COLUMNS, "orderByAsc": True, "runsExpanded": {sweep: True}}
    chosen |= {"columnOrder": ORDER, "columnWidths": WIDTHS}
    kept = {
        f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment.experiment_id}"]-ReactComponentState': json.dumps(chosen),
        "mlflow.assistant.panelOpen_v1": "false",
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 720}, color_scheme="light")
        for key, value in kept.items():
            page.add_init_script(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)});")
        page.goto(f"{server}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning")
        page.locator(".ag-row").nth(len(runs) - 1).wait_for(timeout=120_000)
        page.wait_for_timeout(2000)  # until its columns have their widths
        page.screenshot(path=picture)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="for the sweep and the server; a temporary one by default")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with mlflow_server(folder) as server:
            told = {**os.environ, "MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": EXPERIMENT}
            sweep = [sys.executable, "-m", "slimsweep.run", "--output", str(folder / "runs"), *SWEEP]
            subprocess.run(sweep, env=told, check=True)
            take_picture(server, options.picture)


if __name__ == "__main__":
    main()
