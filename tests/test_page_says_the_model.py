"""The page says which model was cut, where the configuration changes what a name of timm's stands for."""

from dataclasses import replace

import pytest
from test_report import make_run

from slimsweep.report.page import build_page


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            "model: {name: vit_tiny_patch16_224, kwargs: {img_size: 96, depth: 4}}",
            "vit_tiny_patch16_224 (img_size 96, depth 4) on digits",
        ),
        ("model: {kwargs: {note: <b>bold</b>}}", "vit_tiny_patch16_224 (note &lt;b&gt;bold&lt;/b&gt;) on digits"),
        ("model: {name: vit_tiny_patch16_224}", "vit_tiny_patch16_224 on digits"),
        ("no: [configuration", "vit_tiny_patch16_224 on digits"),
        (None, "vit_tiny_patch16_224 on digits"),
    ],
)
def test_the_subtitle_has_the_sizes_that_were_changed(config: str | None, said: str) -> None:
    assert said in build_page([replace(make_run(), config=config)])
