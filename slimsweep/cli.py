"""The slimsweep command: run a sweep; show, time, pick and export its models."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from slimsweep import __version__
from slimsweep.errors import exit_code
from slimsweep.imports import load_timm
from slimsweep.slimming.cost import COSTS
from slimsweep.terminal import code_after_output, end_command, outlive_output, plain_console, say, say_path, show_fitting

if TYPE_CHECKING:
    from slimsweep.ledger.run import Run

# Each command imports what it needs, so that --help and wrong arguments are answered without loading torch.

RUN = "the run's folder, such as runs/digits or s3://bucket/sweeps/digits"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code (`slimsweep.errors`): 0, 1 when something failed, 2 when the input was refused.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["run"]:
        from slimsweep.run import main as run

        return run(words[1:])
    outlive_output(work_goes_on=False)
    try:
        code = _command(words)
    except SystemExit as ended:  # argparse has answered: --help, --version, arguments of a wrong form
        code = ended.code if isinstance(ended.code, int) else 0
        raise SystemExit(code_after_output(code)) from None
    return code_after_output(code)


def _command(words: list[str]) -> int:
    """Run a subcommand other than `run`, and return its exit code."""
    if "--version" in words:
        say(plain_console(), f"slimsweep {__version__}")
        return 0
    chosen, rest = parser().parse_known_args(words)
    if rest and chosen.act is not plan:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    chosen.configuration = rest
    chosen.said = shlex.join(("slimsweep", *words))
    console = plain_console()
    command: Callable[[argparse.Namespace, Console], None] = chosen.act
    named = ("run", "path", "model", "output", "folder", "file")
    paths = [getattr(chosen, name, None) for name in named] + getattr(chosen, "runs", [])
    given = [path for path in paths if path is not None]
    return exit_code(lambda: command(chosen, console), console, verbose=chosen.verbose, given=given)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `act`, the function that runs it."""
    words = (
        "A point is one model of a run's results: one method, at one budget, with one seed. Dense is the model before any cut."
    )
    top = argparse.ArgumentParser(prog="slimsweep", description=__doc__, epilog=words)
    top.add_argument("--version", action="store_true", help="print slimsweep's version")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Callable[[argparse.Namespace, Console], None] | None, words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words)
        added.set_defaults(act=act)
        added.add_argument("--verbose", action="store_true", help="show the whole traceback of an error")
        return added

    command("run", None, "run a sweep: the same as python -m slimsweep.run, whose --help lists every field")

    add = command("new", new, "look at a folder of images and write a first configuration for it, with comments")
    add.add_argument(
        "folder",
        metavar="FOLDER",
        help="a folder with one subfolder per class; or with train/ and validation/, each with one subfolder per class; or of "
        "images without labels",
    )
    add.add_argument("--output", default="sweep.yaml", metavar="FILE", help="the file to write (default: sweep.yaml)")
    add.add_argument("--unlabelled", action="store_true", help="the images have no labels: subfolders are not classes")
    add.epilog = "Nothing is overwritten. Example: slimsweep new /data/my-images"

    add = command("plan", plan, "what a configuration would do and cost, without a cluster")
    add.add_argument(
        "--images",
        type=_sizes,
        metavar="TRAIN,VAL,TEST",
        help="images per split, where the data are not on this machine",
    )
    add.add_argument("--nodes", type=int, help="nodes of the cluster that will run it (default: this machine)")
    add.add_argument("--node-cpus", type=float, metavar="N", help="CPUs of each node; needed with --nodes")
    add.add_argument("--node-gpus", type=float, default=0.0, metavar="N", help="GPUs of each node (default: 0)")
    add.add_argument(
        "--tflops",
        type=float,
        metavar="X",
        help="speed that a GPU which is not on this machine sustains in training, in 10^12 floating-point operations per "
        "second; 2 operations are one multiply-accumulate",
    )
    add.add_argument(
        "--price", type=float, metavar="X", help="price of one GPU per hour, or of one worker per hour if there are no GPUs"
    )
    add.add_argument("--run", metavar="RUN", help="a run whose search has ended: plan with what its gates keep")
    add.allow_abbrev = False  # --name is an option of the configuration and no short form of --nodes
    add.epilog = (
        "Takes all options of `slimsweep run` too: --config, --smoke, --quick, --FIELD VALUE. "
        "Example: slimsweep plan --config sweep.yaml --images 45000,5000,10000 --nodes 4 --node-cpus 32 --node-gpus 8 "
        "--tflops 35"
    )

    add = command("status", status, "stages and points of a run: done, running, failed, what comes next")
    add.add_argument("run", metavar="RUN", help=RUN)

    add = command(
        "list", list_runs, "the runs in an output folder, one line each: state, stage, budgets done, best model, date"
    )
    _takes_output(add)

    add = command("report", report, "write the page of one run, or of several on one page")
    add.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help=f"{RUN}; or a table of results, such as reports/digits/results.parquet, or its folder; several are shown "
        "side by side",
    )
    add.add_argument(
        "--output",
        metavar="PATH",
        help="the page's file, or a folder to write report.html into (default: report.html in the run's or the table's folder; "
        "of several, in the current folder)",
    )
    add.epilog = "Example: slimsweep report runs/small runs/base --output both.html"

    add = command("serve", serve, "show all runs of a folder in a browser, live, from Ray Serve, until Ctrl+C")
    _takes_output(add)
    add.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: 127.0.0.1, this machine)"
    )
    add.add_argument("--port", type=int, default=8266, metavar="N", help="the port (default: 8266)")
    add.add_argument(
        "--token-file",
        metavar="FILE",
        help="holds the token that acting asks for, and reading from other machines (default: Ray's own token, of "
        "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token)",
    )
    add.add_argument(
        "--reading",
        choices=("open", "token"),
        help="who may read: whoever reaches the address, or who has the token (default: open on this machine's own address, "
        "token on any other)",
    )
    add.add_argument(
        "--allow-host",
        nargs="+",
        default=(),
        metavar="NAME",
        help="further names under which people reach the service, such as that of a proxy before it",
    )
    add.epilog = (
        "Needs the extra `serve`: pip install 'slimsweep[serve]'. It joins the Ray cluster that RAY_ADDRESS or `ray start` "
        "names, and starts a Ray of its own where there is none. Example: slimsweep serve runs"
    )

    add = command("bench", bench, "latency, throughput and memory of each point and of dense, timed in interleaved rounds")
    add.add_argument("path", metavar="RUN_OR_MODEL_DIR", help=f"{RUN}; or one model, such as RUN/models/POINT")
    add.add_argument("--batch-sizes", type=_sizes, default=(1, 8), metavar="N,N", help="images per call (default: 1,8)")
    add.add_argument("--threads", type=int, help="CPU threads (default: torch's own number)")
    add.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and images (default: float32)"
    )
    add.add_argument("--device", choices=("cpu", "cuda"), help="where to time (default: cuda where there is a GPU)")
    add.add_argument("--compile", action="store_true", help="compile the models by torch.compile")
    add.add_argument(
        "--runtime",
        choices=("torch", "onnxruntime"),
        default="torch",
        help="what computes the models; onnxruntime, from their ONNX files (default: torch)",
    )
    add.add_argument("--repeats", type=int, default=10, help="interleaved rounds (default: 10)")
    add.epilog = (
        "The times are printed; those of a run are also kept in its folder, in bench/, where the report and "
        "`slimsweep pick --max-latency-ms` read them. Example: slimsweep bench runs/digits --batch-sizes 1,32 --threads 1"
    )

    add = command("quantize", quantize, "write INT8 versions of models as ONNX files, and measure what they lose and gain")
    add.add_argument("path", metavar="RUN_OR_MODEL_DIR", help=f"{RUN}; or one model, such as RUN/models/POINT")
    add.add_argument(
        "--points", nargs="+", metavar="NAME", help="of a run: points, or dense (default: all that are done, and dense)"
    )
    add.add_argument(
        "--data",
        metavar="FOLDER",
        help="of a model that is of no run: images to calibrate and to judge with, as data.root of a run takes them",
    )
    add.add_argument(
        "--images",
        type=int,
        default=512,
        metavar="N",
        help="training images to calibrate with, without augmentation (default: 512)",
    )
    add.add_argument(
        "--calibration",
        choices=("minmax", "entropy", "percentile"),
        default="minmax",
        help="how the range of each activation follows from these images (default: minmax, the whole range)",
    )
    add.add_argument(
        "--keep-fp32",
        nargs="+",
        default=(),
        metavar="LAYER",
        help="layers that stay float32, such as blocks.3.mlp.fc2, or blocks.3 for a whole block",
    )
    add.add_argument(
        "--weight-bits",
        type=int,
        choices=(7, 8),
        help="7 for processors on which onnxruntime's sums overflow: x86 without VNNI (default: what suits this one)",
    )
    add.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per timed call (default: 1)")
    add.add_argument("--threads", type=int, help="CPU threads (default: torch's own number)")
    add.add_argument("--repeats", type=int, default=10, help="interleaved rounds of the timing (default: 10)")
    add.add_argument(
        "--output",
        metavar="PATH",
        help="a folder for the files of a run (default: exports/ in it); the file or a folder for one model (default: "
        "model-int8.onnx in MODEL_DIR)",
    )
    add.add_argument("--again", action="store_true", help="make anew what an earlier call made with the same settings")
    add.epilog = (
        "Files are NAME-int8.onnx. The test split is read once, at the end; a model that loses more than a point on validation "
        "is named, with the layers to keep in float32. Example: slimsweep quantize runs/digits --points dense --threads 1"
    )

    add = command("pick", pick, "print the folder of the best model under a limit, chosen by validation")
    add.add_argument("run", metavar="RUN", help=RUN)
    for cost in COSTS.values():
        most = f"most {cost.title} of the model: a fraction of the dense model's (0.5, 50%%) or an amount ({cost.example})"
        add.add_argument(f"--max-{cost.name}", metavar="BUDGET", help=most)
    add.add_argument(
        "--min-top1",
        type=float,
        metavar="PERCENT",
        help="lowest accuracy on validation; without other limits the cheapest model is picked",
    )
    add.add_argument(
        "--min-r2",
        type=float,
        metavar="R2",
        help="as --min-top1, for models without a head: lowest R2 of their features against the dense model's",
    )
    add.add_argument(
        "--max-latency-ms",
        type=float,
        metavar="MS",
        help="highest median time of one call, measured by `slimsweep bench RUN`",
    )
    add.add_argument(
        "--max-ms",
        metavar="MS",
        help="highest latency that the sweep itself measured (its `latency` section), or that `slimsweep latency add` brought: "
        "8, or 40%% of the dense model's",
    )
    add.add_argument(
        "--device",
        metavar="TEXT",
        help="the setting that --max-ms is about, where there are several: any part of its name, such as jetson",
    )
    add.add_argument(
        "--batch-size",
        type=int,
        help="batch size of the latencies (default: of --max-latency-ms the smallest that was timed)",
    )
    add.add_argument(
        "--precision",
        choices=("float32", "int8", "any"),
        default="float32",
        help="int8: INT8 versions of `slimsweep quantize`, whose file is printed; any: those and the models as they were "
        "trained (default: float32)",
    )
    add.epilog = "Example: slimsweep pick runs/my-sweep --max-macs 1.2G"

    add = command("export", export, "write a model for other tools, and check that it computes the same")
    add.add_argument("model", metavar="MODEL_DIR", help="a saved model, such as RUN/models/POINT (`slimsweep pick` prints one)")
    add.add_argument(
        "--format",
        choices=("onnx", "pt2", "timm"),
        required=True,
        help="onnx: a file for ONNX runtimes; pt2: a program for torch.export.load; timm: a folder for timm and the Hugging "
        "Face Hub",
    )
    add.add_argument(
        "--output",
        metavar="PATH",
        help="the file or folder, or a folder to write the file into (default: POINT.onnx, POINT.pt2 or POINT-timm in the "
        "run's exports/; for a model outside a run model.onnx or model.pt2 in MODEL_DIR, or MODEL_DIR-timm; in the current "
        "folder if MODEL_DIR is on an object store)",
    )
    add.epilog = "Example: slimsweep export runs/digits/models/POINT --format onnx"

    add = command("push", push, "upload a model to the Hugging Face hub, with its card, for timm to load from there")
    add.add_argument("model", metavar="MODEL_DIR", help="a saved model, such as RUN/models/POINT (`slimsweep pick` prints one)")
    add.add_argument("repository", metavar="OWNER/NAME", help="the repository on the hub; made where it is missing")
    add.add_argument("--public", action="store_true", help="where it is made, make it public (default: private)")
    add.epilog = (
        "Uploads model.safetensors, config.json and README.md, the card, and nothing else. The token is that of the variable "
        "HF_TOKEN or of `hf auth login`. Example: slimsweep push runs/digits/models/POINT my-name/digits-half"
    )

    what = "latency on other devices: models to time there, their times, and the times in a run's page and pick"
    kinds = command("latency", None, what).add_subparsers(required=True, metavar="WHAT")

    def latency(name: str, act: Callable[[argparse.Namespace, Console], None], words: str) -> argparse.ArgumentParser:
        added = kinds.add_parser(name, help=words, description=words)
        added.set_defaults(act=act)
        added.add_argument("--verbose", action="store_true", help="show the whole traceback of an error")
        return added

    add = latency(
        "export",
        latency_export,
        "write a model per structure that a run's budgets choose from: dense, prefixes of its removal path, and its points",
    )
    add.add_argument("run", metavar="RUN", help=f"{RUN}; its search must have ended")
    add.add_argument("--output", metavar="DIR", help="the folder to write (default: exports/ in the run's folder)")
    add.add_argument(
        "--batch-size",
        type=_batch_size,
        default=1,
        metavar="N",
        help="images per call, the only number that the files take, as compilers for devices want it; any leaves it open "
        "(default: 1)",
    )
    add.add_argument("--format", nargs="+", choices=("onnx", "pt2"), default=["onnx"], help="of the files (default: onnx)")
    add.add_argument(
        "--paces",
        choices=("all", "chosen"),
        help="the removal path at the chosen pace alone, or at each of search.paces (default: all before a pace is chosen)",
    )
    add.epilog = (
        "Files that are there already are not written again. The folder also gets manifest.json and time_on_device.py, which "
        "times the files where only onnxruntime and numpy are installed. Example: slimsweep latency export runs/my-sweep"
    )

    add = latency("time", latency_time, "time the ONNX files of an export on this machine, and write the times as CSV")
    add.add_argument("folder", metavar="FOLDER", help="what `slimsweep latency export` wrote, or a copy of it")
    add.add_argument(
        "--output", metavar="FILE", help="the CSV file; times of other settings that it has stay (default: times.csv in FOLDER)"
    )
    add.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: onnxruntime's own number)")
    add.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    add.add_argument("--batch-size", type=int, metavar="N", help="images per call, where the export left it open (default: 1)")
    add.add_argument("--rounds", type=int, default=10, metavar="N", help="interleaved rounds (default: 10)")
    add.add_argument("--name", metavar="TEXT", help="the device's name in the CSV (default: the processor's)")
    add.add_argument(
        "--only-missing", action="store_true", help="time only what the CSV file has no time of in this setting, or a busy one"
    )
    add.epilog = "Example: slimsweep latency time /media/stick/timing --threads 2"

    add = latency("add", latency_add, "keep a CSV file of times in a run, for its page and for `slimsweep pick --max-ms`")
    add.add_argument("run", metavar="RUN", help=RUN)
    add.add_argument("file", metavar="FILE", help="the CSV file, of `slimsweep latency time` or filled by hand")
    add.epilog = "Example: slimsweep latency add runs/my-sweep jetson.csv"

    add = command("completion", completion, "print the script by which a shell completes commands, options and fields")
    add.add_argument("shell", choices=("bash", "zsh"), help="the shell")
    add.epilog = (
        'Needs the package shtab. In ~/.bashrc: eval "$(slimsweep completion bash)". In zsh, write it to a file _slimsweep in '
        "a folder of $fpath."
    )
    return top


def _takes_output(add: argparse.ArgumentParser) -> None:
    """Let a command take the folder of all runs."""
    add.add_argument(
        "output",
        nargs="?",
        default="runs",
        metavar="OUTPUT",
        help="the folder that holds run folders, as --output of a sweep; also s3://... (default: runs)",
    )


def new(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.tools.new import write_new

    for line in write_new(Path(chosen.folder).expanduser(), Path(chosen.output).expanduser(), chosen.unlabelled):
        say(console, line)


def plan(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.config import ConfigError, load_config

    config, options = load_config(chosen.configuration, prog="slimsweep plan")
    load_timm()

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from slimsweep.cluster.cluster import Cluster
    from slimsweep.earlier_start import earlier_config, go_on_from
    from slimsweep.fit_to_data import fit_to_data, say_fitted
    from slimsweep.ledger.run import Run
    from slimsweep.tools.estimate import Images, show
    from slimsweep.tools.plan import plan as cost

    cluster, images = None, None
    if chosen.nodes is not None:
        if chosen.nodes < 1:
            raise ConfigError(f"--nodes is {chosen.nodes}: give one node or more")
        if not chosen.node_cpus:
            example = f"--nodes {chosen.nodes} --node-cpus 32"
            raise ConfigError(
                f"--nodes is {chosen.nodes}, and --node-cpus does not say what a node has: give it, as in {example}"
            )
        cluster = Cluster([{"CPU": chosen.node_cpus, "GPU": chosen.node_gpus}] * chosen.nodes)
    if chosen.images is not None:
        if len(chosen.images) != 3:
            raise ConfigError(f"--images is {','.join(map(str, chosen.images))}: give three numbers, TRAIN,VAL,TEST")
        images = Images(train=chosen.images[0], val=chosen.images[1], test=chosen.images[2])
    run = Run(chosen.run, config) if chosen.run else None
    train = None if images is None else images.train
    config, fitted = fit_to_data(config, options.unset, run=run, train=train, quick=options.quick)
    if run is not None:
        run.take_config(config)
    if run is not None and (old := earlier_config(run)) is not None:  # as the run would go on
        go_on_from(run, old, options.quick)
        config = run.config
    say_fitted(config, fitted, console)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=plain_console(stderr=True), transient=True
    ) as bars:
        bar = bars.add_task("timing models", total=None)

        def timing(done: int, total: int, what: str) -> None:
            bars.update(bar, completed=done, total=total, description=f"timing {what}")

        found = cost(config, images=images, cluster=cluster, tflops=chosen.tflops, run=run, progress=timing)
    show(found, console, chosen.price)


def status(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.ledger.damage import look_over
    from slimsweep.ledger.run import Run
    from slimsweep.ledger.status import read_status
    from slimsweep.tools.status import status_table

    run = Run(chosen.run)
    run.refuse_other_folders()
    show_fitting(console, status_table(read_status(run)), drop=("epoch", "val top-1 %", "val R2"), wraps="")
    for sentence in look_over(run):
        say(console, sentence, "yellow")


def list_runs(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.tools.list_runs import read_lines, runs_in, runs_table

    left_out: list[str] = []
    lines, problems = read_lines(runs_in(chosen.output, lambda name, why: left_out.append(f"{name} is left out: {why}")))
    if lines:
        show_fitting(console, runs_table(lines, ""), drop=("last result", "stage"))
    for sentence in [*problems, *left_out]:
        say(plain_console(stderr=True), sentence, "yellow")


def serve(chosen: argparse.Namespace, console: Console) -> None:
    import importlib.util
    import signal

    from slimsweep.errors import RefusedInput
    from slimsweep.service.settings import settings_from

    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise RefusedInput(f"{missing[0]} is not installed, which `slimsweep serve` needs: pip install 'slimsweep[serve]'")
    settings = settings_from(
        chosen.output,
        host=chosen.host,
        port=chosen.port,
        token_file=chosen.token_file,
        reading=chosen.reading,
        names=tuple(chosen.allow_host),
    )

    from slimsweep.service.deployed import serve as until_stopped

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl+C does: on a shared cluster, Serve would stay
    try:
        until_stopped(settings, lambda line: say(console, line))
    except KeyboardInterrupt:
        say(console, "the service has ended")


def report(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.config import refuse_rays_copy
    from slimsweep.ledger.files import REPORT_PAGE
    from slimsweep.ledger.run import Run
    from slimsweep.ledger.status import read_status
    from slimsweep.report.page import write_page, write_report
    from slimsweep.report.picture import kaleido_here
    from slimsweep.report.run_tables import has_tables_alone, read_tables, table_in
    from slimsweep.storage import Folder, joined

    output = chosen.output or REPORT_PAGE
    of_one = len(chosen.runs) == 1 and chosen.output is None  # which goes into the folder of what is shown
    if not of_one:
        refuse_rays_copy("--output", output, "--output /shared/digits.html")
    elif has_tables_alone(chosen.runs[0]):
        output = joined(table_in(chosen.runs[0])[0], REPORT_PAGE)
    else:
        run = Run(chosen.runs[0])
        said = write_report(run, read_status(run))
        say_path(console, "", run.report_uri)
        if said and kaleido_here():  # who has not installed it asked for no picture
            say(plain_console(stderr=True), said)
        _say_not_trusted(run)
        _say_damage(run)
        return
    if Folder(output).is_folder or output.endswith("/"):
        output = joined(output, REPORT_PAGE)
    shown = [one for path in chosen.runs for one in (read_tables(path) if has_tables_alone(path) else [Run(path)])]
    write_page(shown, output)
    say_path(console, "", output)
    _say_not_trusted(*(one for one in shown if isinstance(one, Run)))
    _say_damage(*(one for one in shown if isinstance(one, Run)))


def bench(chosen: argparse.Namespace, console: Console) -> None:
    load_timm()

    from slimsweep.ledger.run import Run
    from slimsweep.tools.bench import bench_dir, bench_run, busy_sentence, table

    names = ("batch_sizes", "threads", "dtype", "device", "compile", "runtime", "repeats")
    options = {name: getattr(chosen, name) for name in names}
    run = Run(chosen.path)
    skipped: list[str] = []
    rows = bench_run(run, skipped=skipped.append, **options) if run.is_begun else bench_dir(chosen.path, **options)
    show_fitting(console, table(rows), drop=("fewer MACs", "memory", "p90 ms", "GMACs", "images/s"))
    if busy := busy_sentence(rows, chosen.said):
        say(console, busy, "yellow")
    for sentence in skipped:
        say(plain_console(stderr=True), f"not timed: {sentence}", "yellow")


def quantize(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.config import refuse_rays_copy
    from slimsweep.errors import RefusedInput
    from slimsweep.ledger.run import Run
    from slimsweep.storage import joined

    if chosen.output is not None:
        refuse_rays_copy("--output", chosen.output, "--output /shared/int8")
    load_timm()

    from slimsweep.ledger.model_card import run_of_model
    from slimsweep.tools.quantize import quantize_dir, quantize_run
    from slimsweep.tools.quantize_work import Settings, Timing
    from slimsweep.tools.quantized_table import busy_sentence, table

    settings = Settings(
        images=chosen.images,
        calibration=chosen.calibration,
        keep_fp32=tuple(chosen.keep_fp32),
        weight_bits=chosen.weight_bits,
    )
    timing = Timing(batch_size=chosen.batch_size, threads=chosen.threads, repeats=chosen.repeats)
    run, points = Run(chosen.path), chosen.points
    if not run.is_begun and chosen.data is None and (found := run_of_model(chosen.path)) is not None:
        run, points = found[0], [found[1]]
        if chosen.points:
            raise RefusedInput(f"--points is {chosen.points[0]!r}, and {chosen.path} is one model: give its run's folder")
    where = plain_console(stderr=True)
    with where.status("") as line:
        progress = line.update if where.is_terminal else lambda what: None
        if run.is_begun:
            if chosen.data is not None:
                raise RefusedInput(
                    f"--data is {chosen.data}, and {chosen.path} is a run, which has its own images: leave it out"
                )
            made = quantize_run(
                run, points, settings=settings, timing=timing, output=chosen.output, again=chosen.again, progress=progress
            )
        elif chosen.points:
            raise RefusedInput(f"--points is {chosen.points[0]!r}, and {chosen.path} is no run: give a run's folder")
        else:
            made = quantize_dir(
                chosen.path, chosen.data, settings=settings, timing=timing, output=chosen.output, progress=progress
            )
    show_fitting(console, table(made.rows), drop=("faster", "fp32 ms", "fp32 size"))
    for row in made.rows:
        file = row["file"]
        say_path(console, "", joined(run.uri, file) if run.is_begun and not Path(file).is_absolute() else file)
    for sentence in made.said:
        say(where, sentence)
    for sentence in [*made.warnings, busy_sentence(made.rows, chosen.said)]:
        if sentence:
            say(where, sentence, "yellow")
    _say_damage(run)


def pick(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.ledger.latencies import latencies, left_out
    from slimsweep.ledger.run import Run
    from slimsweep.ledger.tables import not_trusted
    from slimsweep.tools.pick import describe, refuse_missing_model
    from slimsweep.tools.pick import pick as best
    from slimsweep.tools.pick_int8 import FILE, int8_file

    run = Run(chosen.run)
    run.refuse_other_folders()
    limits = {name: getattr(chosen, f"max_{name}") for name in COSTS}
    names = ("min_top1", "min_r2", "max_latency_ms", "max_ms", "device", "batch_size", "precision")
    others = {name: getattr(chosen, name) for name in names}
    timings = run.products.bench()
    quantized = None if chosen.precision == "float32" else run.products.quantized()
    row = best(run.rows, timings, limits=limits, device_times=run.products.device_times(), quantized=quantized, **others)
    refuse_missing_model(run, row)
    # The folder, or the INT8 file, alone on standard output, so that a script can take it.
    print(int8_file(run, row) if row[FILE] else (run.folder / row.model_path).uri)
    say(plain_console(stderr=True), describe(row))
    lost = ""
    if chosen.max_latency_ms is not None and chosen.precision == "float32":
        lost = not_trusted(timings, f"slimsweep bench {chosen.run}")
    elif chosen.max_ms is not None:
        lost = left_out(latencies(run.rows, run.products.device_times()))
    if lost:
        say(plain_console(stderr=True), lost, "yellow")
    _say_damage(run)


def export(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.config import refuse_rays_copy

    # Without --output the export of a model on an object store goes to the current folder, any other to the model's.
    refuse_rays_copy("--output", chosen.output or ("." if "://" in chosen.model else chosen.model), "--output /shared/onnx")
    load_timm()

    from slimsweep.tools.export import export_checked

    written = export_checked(chosen.model, chosen.format, chosen.output)
    say(console, str(written.path))  # alone on standard output, so that a script can take it
    say(plain_console(stderr=True), written.text)
    if chosen.format == "timm":
        load = f"import slimsweep, timm; timm.create_model({f'local-dir:{written.path}'!r}, pretrained=True)"
        say(plain_console(stderr=True), f"load it: {load}")


def push(chosen: argparse.Namespace, console: Console) -> None:
    load_timm()

    from slimsweep.tools.push import push_model

    pushed = push_model(chosen.model, chosen.repository, public=chosen.public)
    say(console, pushed.url)  # alone on standard output, so that a script can take it
    say(plain_console(stderr=True), pushed.text)


def latency_export(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.config import refuse_rays_copy
    from slimsweep.ledger.run import Run

    refuse_rays_copy("--output", chosen.output or chosen.run, "--output /shared/timing")
    load_timm()

    from slimsweep.tools.latency import export_cuts

    beside = plain_console(stderr=True)
    options = {"batch_size": chosen.batch_size, "formats": chosen.format, "paces": chosen.paces}
    folder = export_cuts(Run(chosen.run), chosen.output, **options, say=lambda line: say(beside, line))
    say(console, str(folder))  # alone on standard output, so that a script can take it


def latency_time(chosen: argparse.Namespace, console: Console) -> None:
    # Nothing here loads torch, which the timing does not need.
    from slimsweep.errors import RefusedInput
    from slimsweep.latency.time_on_device import INTERRUPTED, TimingRefused, busy_sentence, time_folder

    beside = plain_console(stderr=True)
    names = ("output", "threads", "device", "batch_size", "rounds", "name", "only_missing")
    options = {name: getattr(chosen, name) for name in names}
    try:
        target, rows = time_folder(chosen.folder, **options, say=lambda line: say(beside, line))
    except TimingRefused as problem:
        raise RefusedInput(str(problem)) from problem
    except KeyboardInterrupt:
        say(beside, INTERRUPTED, "yellow")
        raise SystemExit(130) from None
    say(console, str(target))
    if busy := busy_sentence(rows):
        say(beside, busy, "yellow")


def latency_add(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.ledger.run import Run
    from slimsweep.tools.latency import add_times

    for sentence in add_times(Run(chosen.run), chosen.file):
        say(console, sentence)


def _say_not_trusted(*runs: "Run") -> None:
    """Say on standard error which timings and latencies a page leaves out, because the machine was busy."""
    from slimsweep.ledger.latencies import latencies, left_out
    from slimsweep.ledger.tables import not_trusted

    for run in runs:
        for sentence in (
            not_trusted(run.products.bench(), f"slimsweep bench {run.uri}"),
            left_out(latencies(run.rows, run.products.device_times())),
        ):
            if sentence:
                say(plain_console(stderr=True), sentence, "yellow")


def completion(chosen: argparse.Namespace, console: Console) -> None:
    from slimsweep.tools.completion import completion as script

    print(script(parser(), chosen.shell))


def _say_damage(*runs: "Run") -> None:
    """Say on standard error which of the files that a command has read are damaged."""
    for run in runs:
        for sentence in run.damaged.values():
            say(plain_console(stderr=True), sentence, "yellow")


def _batch_size(text: str) -> int | None:
    if text == "any":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, or any") from None


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas between them, such as 1,8") from None


def command() -> NoReturn:
    """The program `slimsweep`."""
    end_command(main())


if __name__ == "__main__":
    command()
