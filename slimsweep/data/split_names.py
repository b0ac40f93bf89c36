"""The names that image folders, and the splits in them, go by."""

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "tests", "testing")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation")
FOLDER_NAMES = ("", "folder", "imagefolder", "image_folder", "torch/folder", "torch/image_folder")


def split_of(name: str) -> str | None:
    """train, val or test, where a name in any capitals stands for it; else None."""
    word = name.strip().lower()
    groups = (("train", TRAIN_NAMES), ("val", VAL_NAMES), ("test", TEST_NAMES))
    return next((split for split, names in groups if word in names), None)
