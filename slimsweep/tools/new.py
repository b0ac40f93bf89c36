"""`slimsweep new`: a first configuration for a folder of images, with comments, sized for a laptop."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import yaml

from slimsweep.config import ConfigError, DataConfig
from slimsweep.data.folders import few
from slimsweep.data.survey import Survey, survey
from slimsweep.data.undivided import SPLITS, class_counts
from slimsweep.terminal import counted

# (side of the network's image, side of a patch) in pixels: at most 64 tokens, which is what keeps training quick on a CPU.
SIZES = ((8, 2), (16, 2), (24, 4), (28, 4), (32, 4), (48, 6), (64, 8), (96, 12), (128, 16))
WIDTH, DEPTH, HEADS = 64, 4, 4  # of the network, as in the preset digits

# What 2 CPU cores do, estimated from the time of the preset digits: enough to choose a number of epochs by.
MACS_PER_SECOND = 15e9  # of training
SECONDS_PER_PIXEL, SECONDS_PER_IMAGE = 6e-9, 5e-4  # to decode and to augment an image
SECONDS = 420.0  # of training that a first sweep may take: ten minutes with all that is around it
EPOCHS = (2, 40)  # of search and retraining, at least and at most
BUDGETS = (0.7, 0.5, 0.35)


def write_new(folder: Path, output: Path, unlabelled: bool = False) -> list[str]:
    """Look at a folder of images and write a configuration for it.

    Args:
        folder: of images, as `slimsweep.data.survey.survey` takes them.
        output: the YAML file to write; it must not exist.
        unlabelled: whether folders are no classes.

    Returns:
        What to say: what was found, what was written, the next commands.

    Raises:
        ConfigError: the file is there already or cannot be written, or the folder cannot be used.
    """
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} is there already, and is not overwritten: give another --output, or move it away")
    seen = survey(folder, unlabelled)
    text = sweep_file(seen)
    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(text)
    except (OSError, UnicodeEncodeError) as problem:
        raise ConfigError(f"--output {output} cannot be written ({problem}): give another file") from problem
    given = shlex.quote(str(output))
    quick = " --quick" if not seen.classes else ""
    place = command_folder()
    next_ = [f"  {place}slimsweep plan --config {given}{quick}", f"  {place}python -m slimsweep.run --config {given}{quick}"]
    warnings = []
    if seen.unreadable:
        names = few(list(seen.unreadable), 3)
        warnings.append(f"cannot be read: {names}. Replace or remove them, or set data.max_damaged.")
    too_few = [name for name, count in seen.classes.items() if count < len(SPLITS)] if not seen.splits else []
    if too_few:
        warnings.append(
            f"fewer than {len(SPLITS)} images: {few(too_few)}. A sweep refuses these classes, since training, validation and "
            "test need one image each: add images, or take the folders out."
        )
    lonely = [name for name, count in seen.classes.items() if count < 10 and name not in too_few]
    if lonely:
        warnings.append(f"fewer than 10 images: {few(lonely)}. Accuracies will say little about them.")
    return [described(seen), *seen.notes, *warnings, f"wrote {output}. What it costs, and then the sweep:", *next_]


def command_folder() -> str:
    """The folder of the commands `slimsweep` and `python` as a shell takes it, with "/": empty where PATH leads to them."""
    called = Path(sys.argv[0])
    found = shutil.which("slimsweep")
    if called.name != "slimsweep" or not (called.parent / "python").exists():
        return ""  # called as a module, or installed without a Python beside it
    if found is not None and Path(found).absolute() == called.absolute():
        return ""
    return shlex.quote(f"{called.parent}/")


def described(seen: Survey) -> str:
    """What was found, in one line."""
    if seen.classes:
        kinds = [f"{name} {count}" for name, count in seen.classes.items()]
        what = f"{counted(seen.images, 'image')} in {len(kinds)} classes ({few(kinds, 10)})"
    else:
        what = f"{counted(seen.images, 'image')} without labels"
    splits = ", ".join(f"{seen.splits[split]} {count}" for split, count in seen.counts.items()) if seen.splits else "no splits"
    channels = "grey" if seen.grey else "colour"
    return f"{what}; {splits}; {channels}, {seen.width} x {seen.height} pixels (median)"


def sweep_file(seen: Survey) -> str:
    """The configuration for a folder, as YAML with comments."""
    return _labelled(seen) if seen.classes else _unlabelled(seen)


def _labelled(seen: Survey) -> str:
    side, patch = _size(seen)
    epochs, batch = first_epochs(seen), batch_size(seen)
    tiny = side <= 32
    kwargs = f"img_size: {side}, patch_size: {patch}, embed_dim: {WIDTH}, depth: {DEPTH}, num_heads: {HEADS}"
    if seen.grey:
        kwargs += ", in_chans: 1"
    train = _training_images(seen)
    short = ""
    if epochs == EPOCHS[0]:
        short = "# This is much data for a laptop: so few epochs only show that everything works.\n"
    return f"""{_head(seen)}
name: {_name(seen)}

# What a cut model may cost: fractions of the whole model's multiply-accumulates (MACs). Also "20M" (MACs) or "60% params".
budgets: [{", ".join(map(str, BUDGETS))}]

# A small vision transformer that is trained from nothing, so nothing is downloaded. A larger embed_dim (a multiple of
# num_heads) or depth is more accurate and slower.
model:
  name: vit_tiny_patch16_224
  kwargs: {{{kwargs}}}

data:
  name: folder
  root: {_quoted(str(seen.root))}
{_split_lines(seen)}  batch_size: {batch}  # images per step, out of {train} training images
  augment:
    scale: [{"0.7" if tiny else "0.35"}, 1.0]  # share of the image that a random crop covers; null for no random crop
    hflip: 0.5  # probability of mirroring left and right: 0.0 for letters, digits, or where left and right differ

# Two trainings, in passes over the training images: the whole (dense) model, and each cut model after its cut.
# Sized by a rule of thumb for ten minutes on 2 CPU cores (`slimsweep plan` times it). More epochs give better models.
{short}dense: {{epochs: {2 * epochs}, lr: 2.0e-3, warmup_epochs: 1, clip_grad: 1.0}}
retrain: {{epochs: {epochs}, lr: 1.0e-3, warmup_epochs: 1, clip_grad: 1.0}}

# What is removed first is ranked by what each part does on some training images, in seconds. To train gates for it instead:
# search: {{epochs: {epochs}, lr: 1.0e-3}}

# Cheaper methods at the same budgets, to compare with:
# baselines: [uniform, taylor]

# With a GPU, start from pretrained weights: far more accurate on photographs. Put these lines in place of those above.
# deit_tiny_patch16_224 is smaller. Where nothing can be downloaded, model.checkpoint takes a file of weights.
# model: {{name: deit_small_patch16_224, pretrained: true}}  # downloads 88 MB
# dense: {{epochs: 20, lr: 1.0e-4}}  # trains the pretrained weights on your classes
# retrain: {{epochs: 50, lr: 2.0e-4}}
# resources: {{gpus_per_worker: 1, cpus_per_worker: 8}}
"""


def _unlabelled(seen: Survey) -> str:
    return f"""{_head(seen)}
# Without labels a backbone is slimmed: a pretrained model without its head, whose features the cut models learn to reproduce.
# For a classifier, sort the images into one folder per class and run `slimsweep new` again.
name: {_name(seen)}

# What a cut model may cost: fractions of the whole model's multiply-accumulates (MACs). Also "2.3G" (MACs) or "60% params".
budgets: [{", ".join(map(str, BUDGETS))}]

# DINOv2 small; its weights are downloaded (88 MB). vit_base_patch14_dinov2 is larger. num_classes: 0 leaves the head out.
model: {{name: vit_small_patch14_dinov2, pretrained: true, kwargs: {{num_classes: 0, img_size: 224}}}}

data:
  name: folder
  root: {_quoted(str(seen.root))}
{_split_lines(seen)}  batch_size: {batch_size(seen)}  # images per step, out of {_training_images(seen)} training images

# The parts of the model that add least on your images are removed first. With --quick the models are cut and repaired
# without training, in minutes on a laptop. Retraining makes the smallest ones better, at low rates alone, and needs a GPU.
retrain: {{epochs: 30, lr: 1.0e-5}}
# resources: {{gpus_per_worker: 1, cpus_per_worker: 8}}

# Labelled images, to measure how good the features are: a folder with train/ and validation/, each with a folder per class.
# probe: {{root: /data/my-labelled-images}}
"""


def _head(seen: Survey) -> str:
    lines = [f"# {described(seen)}", f"# {seen.root}"]
    lines += ["# Written by `slimsweep new`. `python -m slimsweep.run --help` explains every field."]
    return "\n".join(_comment(line) for line in lines)


def _comment(line: str) -> str:
    """A line that stays one comment, whatever names are in it."""
    return "".join(letter if letter.isprintable() else "?" for letter in line)


def _split_lines(seen: Survey) -> str:
    """The lines that name the splits, where their folders have other names than a sweep looks for."""
    if not seen.splits:
        if seen.classes:
            return "  # No split folders: images are drawn for training, validation and test, the same ones in every run.\n"
        return "  # No split folders: a tenth of the images is drawn for validation, and as many for test.\n"
    usual = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
    lines = [f"  {split}_split: {_quoted(name)}\n" for split, name in seen.splits.items() if name not in usual[split]]
    if "test" in seen.splits and lines and "val" in seen.splits and seen.splits["val"] in usual["val"]:
        lines.append(f"  val_split: {_quoted(seen.splits['val'])}\n")
    if "test" not in seen.splits and "val" in seen.splits and seen.splits["val"] not in usual["val"]:
        lines = [line for line in lines if not line.startswith("  val_split")]
        lines.append(f"  test_split: {_quoted(seen.splits['val'])}\n")
    if seen.classes and "test" not in seen.splits:
        lines.append(
            "  val_share: 0.1  # no test folder: validation is the test split, and this share of train is used for validation\n"
        )
    return "".join(lines)


def _training_images(seen: Survey) -> int:
    """How many images are left to train on, once what is missing was drawn for validation and test."""
    found, defaults = seen.counts["train"], DataConfig()
    if seen.classes and not seen.splits:
        drawn = sum(sum(counts) for counts in class_counts(list(seen.classes.values()), defaults.split))
    else:
        missing = 2 - len({"val", "test"} & seen.splits.keys())
        drawn = missing * max(1, round(defaults.val_share * found))
    return max(1, found - drawn)


def _size(seen: Survey) -> tuple[int, int]:
    """(side of the network's image, side of a patch) in pixels: not larger than the images are."""
    side = min(seen.width, seen.height)
    return max((size for size in SIZES if size[0] <= side), default=SIZES[0])


def batch_size(seen: Survey) -> int:
    """A power of 2 that gives an epoch at least eight steps where there are images enough; even, and from 2 to 64."""
    most = max(2, _training_images(seen) // 8)
    return min(64, 2 ** (most.bit_length() - 1))


def first_epochs(seen: Survey) -> int:
    """Epochs of each retraining, so that a first sweep takes about ten minutes on 2 CPU cores."""
    side, patch = _size(seen)
    tokens = (side // patch) ** 2 + 1
    macs = DEPTH * (12 * WIDTH**2 * tokens + 2 * WIDTH * tokens**2) + tokens * WIDTH * 3 * patch**2
    per_image = 3 * macs / MACS_PER_SECOND + SECONDS_PER_PIXEL * seen.width * seen.height + SECONDS_PER_IMAGE
    # Twice as many epochs of the dense model, the retraining of the dense model and of a cut per budget.
    passes = 2 + 1 + sum(BUDGETS)
    return int(min(max(SECONDS / (per_image * _training_images(seen) * passes), EPOCHS[0]), EPOCHS[1]))


def _name(seen: Survey) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", seen.root.name).strip("-._")
    return _quoted(name[:100] or "sweep")


def _quoted(text: str) -> str:
    """A text as YAML reads it back, whatever is in it."""
    return yaml.safe_dump(text, width=10**6, allow_unicode=True).removesuffix("...\n").strip()
