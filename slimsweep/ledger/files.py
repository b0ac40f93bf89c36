"""The names of the files and folders of a run; they stand here and nowhere else.

config.yaml, identity.json         the configuration, and what identifies its checkpoint
splits.json                        the fingerprint of the splits
derived.json                       the fields that nobody set and that follow the data, and why
plan.json, begun/, waiting.json    what the driver has planned, what has begun, what the driver waits for
holder.json, driver.json           which driver holds the run, and its heartbeat while it is at work
dense/, search/, baselines/        the models that points are cut from, and what each method keeps
latency/                           what was timed for budgets in ms, and what they leave
results/, curves/, models/         one row, one curve and one model per point
collected/                         rows and curves once more, many in one file, for who reads thousands
checkpoints/, epochs.log, ray/     what is needed to resume
starts/                            cut and repaired models that points are trained from, until all are done
notes.log, damaged.log             what was said at the start, images that could not be read and were skipped
bench/, errors.log                 timings, tracebacks
device-times/                      times of structures on other devices, from CSV files
exports/                           models in other formats; in exports/latency/ what is timed on other devices
quantized/                         one row per point that was quantized
trackers/, tensorboard/            what each tracker has been told, and TensorBoard's files
report.html, report.svg, report.png
"""

import re

CONFIG_END = "# the whole configuration"  # the last line of the file
STAGES = ("dense", "search", "retrain")  # that every configuration has
WRITTEN_AGAIN = "the same command writes the file again from the searched model"
STARTED_AGAIN = "start the same command again, which writes it anew if its settings are those of the results"

CONFIG, IDENTITY = "config.yaml", "identity.json"
SPLITS, DERIVED = "splits.json", "derived.json"
PLAN, BEGUN, WAITING = "plan.json", "begun", "waiting.json"
HOLDER, DRIVER = "holder.json", "driver.json"
DENSE, SEARCH, CHOICES = "dense", "search", "baselines"
RESULTS, CURVES, MODELS, BENCH = "results", "curves", "models", "bench"
COLLECTED_RESULTS, COLLECTED_CURVES = "collected/rows.parquet", "collected/epochs.parquet"
CHECKPOINTS, STARTS, RAY = "checkpoints", "starts", "ray"
LATENCY, BRANCH_COST = "latency", "latency/branch-cost.json"
EXPORTS, LATENCY_EXPORTS = "exports", "exports/latency"
DEVICE_TIMES = "device-times"
QUANTIZED = "quantized"
TRACKERS, TENSORBOARD = "trackers", "tensorboard"
EPOCHS_LOG, DAMAGED_LOG, ERRORS_LOG = "epochs.log", "damaged.log", "errors.log"
NOTES = "notes.log"
REPORT = "report"  # .svg, .png
REPORT_PAGE = f"{REPORT}.html"
SEARCH_SHAPE, SEARCH_MODEL = f"{SEARCH}/search.json", f"{SEARCH}/model.safetensors"
SEARCH_GATES, SEARCH_PATH = f"{SEARCH}/gates.parquet", f"{SEARCH}/path.safetensors"
# The files of a model's folder, in timm's hub format. The description is written last: where it is, the model is whole.
MODEL_WEIGHTS, MODEL_CONFIG = "model.safetensors", "config.json"
MODEL_CARD = "README.md"  # beside them, for people; nothing reads it
# epoch-00012-3-1f09ab.safetensors is the state after 12 epochs, by the third holder. Earlier versions wrote only the epoch.
CHECKPOINT_NAME = re.compile(r"epoch-(?P<epoch>\d+)(-(?P<generation>\d+)-(?P<token>\w+))?\.safetensors")

LARGEST_CONFIG = 1 << 20  # bytes of CONFIG that are read: slimsweep writes some thousands
# Folders; a name with / with all below. The last one is a log on an object store.
LISTED = (DENSE, SEARCH, RESULTS, CURVES, BENCH, LATENCY, DEVICE_TIMES, QUANTIZED, f"{BEGUN}/", f"{ERRORS_LOG}.d")
LISTED_FILES = (CONFIG, IDENTITY, SPLITS, DERIVED, PLAN, WAITING, HOLDER, ERRORS_LOG)
