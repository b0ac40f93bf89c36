// What a structure keeps in each layer: heads, dims, MLP units and patch tokens, beside another structure.

import { el, svg } from "./dom.js";

/** @import { Page } from "./types.js" */

const layerName = (name) => name.replace(/^blocks\./, "block ");

/**
 * Sizes of each layer: {heads, width, units, tokens}; width is the dims of its widest head.
 * @param {Page} page
 */
function layerSizes(page, structure) {
  const shape = page.shapes[structure.shape];
  return shape.names.map((_, i) => ({
    heads: structure.heads[i].filter((d) => d > 0).length,
    width: Math.max(0, ...structure.heads[i]),
    units: structure.units[i],
    tokens: structure.tokens[i],
  }));
}

function bar(kept, dense, mark, label) {
  const node = el("div", {
    class: "bar",
    role: "img",
    "aria-label": `${kept} of ${dense} ${label}`,
    title: `${kept} of ${dense} ${label}`,
  });
  const fill = el("span", { class: "fill" });
  fill.style.width = `${(100 * kept) / (dense || 1)}%`;
  node.append(fill);
  if (mark !== null && mark !== kept) {
    const tick = el("span", { class: "tick" });
    tick.style.left = `${(100 * mark) / (dense || 1)}%`;
    node.append(tick);
  }
  return node;
}

/** @param {Page} page */
export function keptCard(page, structure, other) {
  const shape = page.shapes[structure.shape];
  const sizes = layerSizes(page, structure);
  const comparable = other && other.structure.shape === structure.shape;
  const marks = comparable ? layerSizes(page, other.structure) : null;
  const rows = el("div", { class: "layers", id: "kept" });
  rows.append(
    el(
      "div",
      { class: "layer layer-head", "aria-hidden": "true" },
      el("span", {}, "Layer"),
      el("span", {}, "Attention: heads × dims"),
      el("span", {}, "MLP units"),
      el("span", {}, "Patch tokens"),
    ),
  );
  for (const [i, name] of shape.names.entries()) {
    const { heads, width, units, tokens } = sizes[i];
    const squares = el("span", {
      class: "heads",
      role: "img",
      "aria-label": `${heads} of ${shape.heads[i]} heads, ${width} of ${shape.head_dim[i]} dims`,
    });
    for (const [h, dims] of structure.heads[i].entries()) {
      const square = el("span", { class: "head", title: `head ${h}: ${dims} of ${shape.head_dim[i]} dims` });
      const fill = el("span");
      fill.style.height = `${(100 * dims) / shape.head_dim[i]}%`;
      square.append(fill);
      squares.append(square);
    }
    rows.append(
      el(
        "div",
        { class: "layer" },
        el("span", { class: "layer-name" }, layerName(name)),
        el(
          "span",
          { class: "cell", "data-label": "heads × dims" },
          squares,
          el("span", { class: "of" }, el("b", {}, `${heads} × ${width}`), ` of ${shape.heads[i]} × ${shape.head_dim[i]}`),
        ),
        el(
          "span",
          { class: "cell", "data-label": "MLP units" },
          bar(units, shape.hidden[i], marks?.[i].units ?? null, "MLP units"),
          el("span", { class: "of" }, el("b", {}, String(units)), ` of ${shape.hidden[i]}`),
        ),
        el(
          "span",
          { class: "cell", "data-label": "tokens" },
          bar(tokens, shape.tokens[i], marks?.[i].tokens ?? null, "patch tokens"),
          el("span", { class: "of" }, el("b", {}, String(tokens)), ` of ${shape.tokens[i]}`),
        ),
      ),
    );
  }
  const note = comparable
    ? el(
        "p",
        { class: "muted small" },
        "A square is a head, filled by the share of its dims that is kept; a tick on a bar marks ",
        other.name,
        ".",
      )
    : null;
  return el("article", { class: "wide" }, el("h3", {}, "Kept in each layer"), rows, note);
}

/**
 * What changes from one structure to another, layer by layer.
 * @param {Page} page
 */
export function differenceTable(page, mine, theirs) {
  const names = page.shapes[mine.shape].names;
  const [from, to] = [layerSizes(page, mine), layerSizes(page, theirs)];
  const body = el("tbody");
  for (const [i, name] of names.entries()) {
    const cells = ["heads", "width", "units", "tokens"].map((key) => {
      const change = to[i][key] !== from[i][key];
      return el("td", { class: change ? "" : "same" }, change ? `${from[i][key]} → ${to[i][key]}` : "same");
    });
    body.append(el("tr", {}, el("th", { scope: "row" }, layerName(name)), ...cells));
  }
  const head = el("tr", {}, ...["Layer", "Heads", "Head dim", "MLP units", "Tokens"].map((t) => el("th", { scope: "col" }, t)));
  return el("div", { class: "scroll" }, el("table", { class: "plain" }, el("thead", {}, head), body));
}

/**
 * One picture of the patch grid for each layer.
 * @param {Page} page
 */
export function tokenCard(page, structure, other) {
  const shape = page.shapes[structure.shape];
  const card = el("article", { id: "tokens" }, el("h3", {}, "Patch tokens kept"));
  if (!structure.last) {
    card.append(
      el("p", { class: "muted" }, "Every patch token is kept in every layer: this model, or this search, has no token gates."),
    );
    return card;
  }
  const [rows, columns] = shape.grid;
  const theirs = other && other.structure.shape === structure.shape ? other.structure.last : null;
  const cells = (keep) => {
    const path = [];
    for (let i = 0; i < rows * columns; i++) if (keep(i)) path.push(`M${i % columns} ${Math.floor(i / columns)}h.9v.9h-.9z`);
    return path.join("");
  };
  const maps = el("div", { class: "token-maps" });
  for (const [layer, name] of shape.names.entries()) {
    const here = (i) => structure.last[i] > layer;
    const there = (i) => !theirs || theirs[i] > layer;
    const picture = svg("svg", {
      viewBox: `-0.2 -0.2 ${columns + 0.3} ${rows + 0.3}`,
      role: "img",
      "aria-label": `${name}: ${structure.tokens[layer]} of ${shape.tokens[layer]} patches kept`,
    });
    picture.append(svg("path", { d: cells((i) => !here(i) && !(theirs && there(i))), class: "gone" }));
    if (theirs)
      picture.append(
        svg("path", { d: cells((i) => here(i) && !there(i)), class: "leaving" }),
        svg("path", { d: cells((i) => !here(i) && there(i)), class: "coming" }),
      );
    picture.append(svg("path", { d: cells((i) => here(i) && there(i)), class: "kept" }));
    maps.append(
      el(
        "figure",
        {},
        picture,
        el("figcaption", {}, layerName(name), el("small", {}, `${structure.tokens[layer]} of ${shape.tokens[layer]}`)),
      ),
    );
  }
  card.append(maps);
  const key = (name, text) => el("span", {}, el("i", { class: `swatch ${name}` }), text);
  const legend = el("p", { class: "muted small legend" }, key("kept", "kept"), key("gone", "dropped"));
  if (maps.querySelector('.leaving:not([d=""])')) legend.append(key("leaving", `kept here, dropped by ${other.name}`));
  if (maps.querySelector('.coming:not([d=""])')) legend.append(key("coming", `dropped here, kept by ${other.name}`));
  card.append(legend);
  return card;
}
