"""The names that folders of splits commonly have, in small letters."""

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "tests", "testing")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation")
