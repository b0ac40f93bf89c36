"""Joining the page's modules: what is joined runs as the modules do, and what cannot be joined is refused with the reason."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from slimsweep.report.bundle import BundleError, bundle

NODE = shutil.which("node")

# Both modules have a `count` and a `status` of their own, and a line that only looks like an import.
LIBRARY = {
    "main.js": """import { double, Pair } from "./numbers.js";
import {
  greet,
  later,
} from "./words.js";

const count = 3;
const status = "main";
console.log(JSON.stringify([double(count), new Pair(1).twice, greet("you"), status]));
later().then((word) => console.log(word));
""",
    "numbers.js": """const count = 2;
export const double = (value) => count * value;
export class Pair {
  constructor(value) {
    this.twice = double(value);
  }
}
""",
    "words.js": """import { double } from "./numbers.js";

const status = "words";
// import nothing more
export function greet(who) {
  return `${status} to ${who}: ${double(4)}`;
}
export async function later() {
  return "later";
}
""",
    "unused.js": "this is not even JavaScript",
}


def test_modules_come_after_those_that_they_import_and_unused_ones_not_at_all():
    script = bundle(LIBRARY, "main.js")
    assert [line for line in script.splitlines() if line.endswith(".js")] == ["// numbers.js", "// words.js", "// main.js"]
    assert "import {" not in script
    assert "\nexport" not in script
    assert "JavaScript" not in script
    assert bundle(dict(reversed(LIBRARY.items())), "main.js") == script  # whatever order the folder is read in


@pytest.mark.skipif(NODE is None, reason="no node on PATH")
def test_a_bundle_does_what_its_modules_do(tmp_path: Path):
    for name, text in LIBRARY.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "bundle.cjs").write_text(bundle(LIBRARY, "main.js"))
    modules, joined = (
        subprocess.run([NODE, tmp_path / name], capture_output=True, text=True, check=True, timeout=60).stdout
        for name in ("main.js", "bundle.cjs")
    )
    assert json.loads(joined.splitlines()[0]) == [6, 2, "words to you: 8", "main"]
    assert joined == modules


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ({"a.js": 'import { b } from "./b.js";', "b.js": 'import { a } from "./a.js";\nexport const b = 1;'},
         r"in a circle: a.js > b.js > a.js"),
        ({"a.js": 'import { b } from "./b.js";'}, r"a.js imports ./b.js, which does not exist"),
        ({"a.js": 'import { b, c } from "./b.js";', "b.js": "export const b = 1;\nconst c = 2;"},
         r"a.js imports c from ./b.js, which does not export that"),
        ({"a.js": 'import { b as c } from "./b.js";', "b.js": "export const b = 1;"},
         r"a.js: import the name itself, not 'b as c'"),
        ({"a.js": 'import { b, b } from "./b.js";', "b.js": "export const b = 1;"}, r"a.js imports b twice"),
        ({"a.js": 'import { b } from "./b.js";\nimport { b } from "./c.js";', "b.js": "export const b = 1;",
          "c.js": "export const b = 1;"}, r"a.js imports b twice"),
        ({"a.js": "export const a = 1;\nexport function a() {}"}, r"a.js exports a twice"),
        ({"a.js": 'import * as b from "./b.js";'}, r"a.js: 'import \* as b"),
        ({"a.js": 'import b from "./b.js";'}, r"a.js: 'import b from"),
        ({"a.js": 'import "./b.js";'}, r"a.js: 'import"),
        ({"a.js": "import { b } from 'plotly';"}, r"a.js: .import { b } from .plotly.*cannot be joined"),
        ({"a.js": 'import { b } from "../b.js";'}, r"a.js: 'import { b }"),
        ({"a.js": "const b = await import('./b.js');"}, r"a.js: .*cannot be joined"),
        ({"a.js": "const here = import.meta.url;"}, r"a.js: .*cannot be joined"),
        ({"a.js": "export default 1;"}, r"a.js: 'export default 1;'"),
        ({"a.js": "export let a = 1;"}, r"a.js: 'export let a = 1;'"),
        ({"a.js": "const a = 1;\nexport { a };"}, r"a.js: 'export { a };'"),
        ({"a.js": "export const { a } = b;"}, r"a.js: 'export const { a } = b;'"),
        ({"a.js": 'export * from "./b.js";'}, r"a.js: 'export \*"),
        ({"a.js": "const text = '</SCRIPT>';"}, r"a.js: '</SCRIPT' would end the page's script"),
        ({"a.js": "const text = '<!--';"}, r"a.js: '<!--'"),
    ],
)  # fmt: skip
def test_what_cannot_be_joined_is_refused_with_the_module_and_the_reason(modules: dict[str, str], reason: str):
    with pytest.raises(BundleError, match=reason):
        bundle(modules, "a.js")


def test_a_missing_entry_is_named():
    with pytest.raises(BundleError, match=r"there is no module main.js"):
        bundle({}, "main.js")
