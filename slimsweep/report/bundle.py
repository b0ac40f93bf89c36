"""Joins JavaScript modules into one classic script, without node: a page opened from disk may not load modules from files.

Each module becomes a function that is called once, after the modules that it imports, and returns what it exports. So names of
one module never meet those of another. Only the forms below are accepted, each at the start of a line; any other that
begins with `import` or `export` is refused. An imported name is a copy: `export let` would not follow later assignments.

    import { one, other } from "./module.js";
    export const one = ...;
    export function other() ...
    export async function another() ...
    export class More ...
"""

import re
from collections.abc import Mapping

IMPORT = re.compile(r'^import \{([^{}]*)\} from "\./([\w-]+\.js)";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:const|function|async function|class) ([\w$]+))", re.MULTILINE)
# What is left of either, and imports while the page runs.
REFUSED = re.compile(r"^[ \t]*(?:import\b|export\b).*|\bimport\s*[(.].*", re.MULTILINE)
NAME = re.compile(r"[A-Za-z_$][\w$]*")


class BundleError(Exception):
    """A module that cannot be joined with the others; the text names the module and what to change."""


def bundle(modules: Mapping[str, str], entry: str) -> str:
    """The modules that the entry needs, as the text of one classic script.

    Args:
        modules: the text of each module, by its file's name.
        entry: the name of the module to run.

    Raises:
        BundleError: a module is missing, imports itself through others, imports a name that is not exported, imports or exports
            a name twice, or has an import or export of another form.
    """
    parsed: dict[str, _Module] = {}
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise BundleError(f"modules import each other in a circle: {' > '.join((*path[path.index(name) :], name))}")
        if name in parsed:
            return
        if name not in modules:
            raise BundleError(f"{path[-1]} imports ./{name}, which does not exist" if path else f"there is no module {name}")
        module = _Module(name, modules[name])
        for imported in module.imports:
            visit(imported, (*path, name))
        for imported, names in module.imports.items():
            if missing := [n for n in names if n not in parsed[imported].exports]:
                raise BundleError(f"{name} imports {', '.join(missing)} from ./{imported}, which does not export that")
        parsed[name] = module
        order.append(name)

    visit(entry, ())
    places = {name: f"module{place}" for place, name in enumerate(order)}
    parts = [parsed[name].wrapped(places) for name in order]
    return "(() => {\n'use strict';\n" + "\n".join(parts) + "\n})();"


class _Module:
    """One module's text without its imports and exports, and what they were."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.imports: dict[str, list[str]] = {}
        self.exports: list[str] = [found[1] for found in EXPORT.finditer(text)]
        seen: set[str] = set()
        for found in IMPORT.finditer(text):
            names = [word.strip() for word in found[1].split(",") if word.strip()]
            if wrong := [word for word in names if not NAME.fullmatch(word)]:
                raise BundleError(f"{name}: import the name itself, not {wrong[0]!r}")
            if twice := seen.intersection(names) or {n for n in names if names.count(n) > 1}:
                raise BundleError(f"{name} imports {sorted(twice)[0]} twice")
            seen.update(names)
            self.imports.setdefault(found[2], []).extend(names)
        if twice := {n for n in self.exports if self.exports.count(n) > 1}:
            raise BundleError(f"{name} exports {sorted(twice)[0]} twice")
        self.body = EXPORT.sub("", IMPORT.sub("", text)).strip()
        if refused := REFUSED.search(self.body):
            raise BundleError(
                f"{name}: {refused[0].strip()!r} cannot be joined with the other modules; write "
                'import { name } from "./module.js"; or put export before const, function, async function or class'
            )
        if markup := re.search(r"</script|<script|<!--", self.body, re.IGNORECASE):
            raise BundleError(f"{name}: {markup[0]!r} would end the page's script, or hide its end; write the < as '\\x3c'")

    def wrapped(self, places: Mapping[str, str]) -> str:
        """The module as a function that is called at once."""
        imports = [f"const {{ {', '.join(names)} }} = {places[other]};" for other, names in self.imports.items() if names]
        body = "\n".join([*imports, self.body, f"return {{ {', '.join(self.exports)} }};"])
        return f"// {self.name}\nconst {places[self.name]} = (() => {{\n{body}\n}})();"
