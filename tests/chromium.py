"""The Chromium of this machine, for the tests of pages and the pictures in reports/."""

import shutil

# First the one without windows, which needs less time and no library of a desktop.
NAMES = "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
MISSING = f"none of {', '.join(NAMES)} is on PATH (apt-get install chromium)"
