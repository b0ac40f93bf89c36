// A point opened: what it is, what it keeps, what differs from its neighbour on the front, how it trained, how to load it.

const COMPARE = { smaller: "next smaller on the front", larger: "next larger on the front", dense: "dense model" };

const groupOf = (view, point) => view.groups.find((g) => g.members.includes(point)) || null;

// The neighbour on the front of the point's own run, one step along it; null at the end.
function neighbourOf(view, point, step) {
  const group = groupOf(view, point);
  if (!group) return null;
  const front = frontOf(
    view.groups.filter((g) => g.run === point.run),
    view.x,
    view.y,
  );
  const cost = (g) => (view.x.more ? -g.x : g.x);
  if (step < 0) return front.filter((g) => cost(g) < cost(group)).pop() || null;
  return front.find((g) => cost(g) > cost(group)) || null;
}

// Sizes of each layer: {heads, width, units, tokens}; width is the dims of its widest head.
function layerSizes(page, structure) {
  const shape = page.shapes[structure.shape];
  return shape.names.map((_, i) => ({
    heads: structure.heads[i].filter((d) => d > 0).length,
    width: Math.max(0, ...structure.heads[i]),
    units: structure.units[i],
    tokens: structure.tokens[i],
  }));
}

const denseSizes = (shape) =>
  shape.names.map((_, i) => ({
    heads: shape.heads[i],
    width: shape.head_dim[i],
    units: shape.hidden[i],
    tokens: shape.tokens[i],
  }));

function drawPoint(view) {
  const section = byId("point");
  const p = view.selected;
  section.hidden = !p;
  if (!p) return;
  const { page } = view;
  const group = groupOf(view, p);
  const parts = [pointHead(view, p, group), pointFacts(view, p, group)];
  if (p.status !== "ok") parts.push(el("pre", { class: "error" }, p.error || "no error text"));
  const grid = el("div", { class: "point-grid" });
  const other = comparedWith(view, p);
  if (p.layers) {
    grid.append(keptCard(page, p.layers, other), differenceCard(view, p, other), tokenCard(page, p.layers, other));
  } else {
    grid.append(
      el(
        "article",
        {},
        el("h3", {}, "Kept in each layer"),
        el("p", { class: "muted" }, "This row holds no structure that can be read."),
      ),
    );
  }
  grid.append(trainingCard(), loadCard(page, p));
  parts.push(grid);
  section.replaceChildren(...parts);
  drawTraining(view, p, group);
}

function pointHead(view, p, group) {
  const { page } = view;
  const step = (by, label, symbol) => {
    const target = neighbourOf(view, p, by);
    return el(
      "button",
      { type: "button", "aria-label": label, title: label, disabled: !target, onclick: () => choose(target.best) },
      symbol,
    );
  };
  const head = el(
    "div",
    { class: "section-head" },
    el(
      "h2",
      { id: "point-title" },
      markerIcon(page, p.method, seriesStyle(page, p.run, p.method).colour),
      ` ${p.method} at ${share(p.budget, 1)} of the MACs${p.shares ? `: ${sharesOf(p)}` : ""}`,
    ),
    el(
      "span",
      { class: "downloads" },
      step(-1, "Next smaller on the front", "← smaller"),
      step(1, "Next larger on the front", "larger →"),
    ),
  );
  const line = el(
    "p",
    { class: "muted point-name" },
    page.runs.length > 1 ? `${page.runs[p.run].name} · ` : "",
    el("code", {}, p.point),
  );
  if (view.knee && group === view.knee) line.append(" · the knee");
  if (view.answer?.answer === p) line.append(" · the answer to the question");
  if (group && !view.front.includes(group)) line.append(" · dominated");
  if (group && group.members.length > 1) {
    line.append(" · seeds ");
    for (const member of group.members)
      line.append(
        el(
          "button",
          { type: "button", class: "seed", "aria-pressed": String(member === p), onclick: () => choose(member) },
          String(member.seed),
        ),
      );
  }
  return el("div", {}, head, line);
}

function pointFacts(view, p, group) {
  const facts = el("dl", { class: "facts" });
  const fact = (term, value, note = "") =>
    facts.append(el("div", {}, el("dt", {}, term), el("dd", {}, value, note ? el("small", {}, note) : null)));
  const dense = view.dense[p.run];
  fact("MACs", scaled(p.macs, "MACs"), `${share(p.macs, p.macs_dense)} of dense`);
  fact("Parameters", scaled(p.params, ""), `${share(p.params, p.params_dense)} of dense`);
  if (p.status === "ok") {
    const tested = (group ? group.members : [p]).map((m) => m.test_top1).filter(known);
    const many = tested.length > 1;
    fact(
      "Test top-1",
      percent(p.test_top1),
      many ? `${withSpread(mean(tested), standardError(tested))} over ${tested.length} seeds` : `top-5 ${percent(p.test_top5)}`,
    );
    if (known(dense.top1) && p.method !== "dense") fact("Against dense", points(p.test_top1 - dense.top1), dense.what);
    fact(
      "Validation top-1",
      percent(p.val_top1),
      known(p.val_top1_cut) ? `${percent(p.val_top1_cut)} right after the cut` : "",
    );
    fact("On disk", scaled(p.model_bytes, "B"));
    fact(
      "Training",
      duration(p.train_seconds),
      `${known(p.epochs) ? count(p.epochs, "epoch") : ""}${known(p.lr) ? `, learning rate ${p.lr}` : ""}${p.device ? `, ${p.device}` : ""}`,
    );
    for (const [s, numbers] of Object.entries(p.bench)) {
      const base = view.page.bench_dense[`${p.run}|${s}`];
      const faster = known(base) && known(numbers[0]) ? `, ${significant(base / numbers[0], 2)} × dense` : "";
      if (known(numbers[0])) fact("Latency p50", `${significant(numbers[0])} ms`, `${view.page.settings[s]}${faster}`);
      if (known(numbers[2])) fact("Throughput", `${significant(numbers[2])} images/s`, view.page.settings[s]);
    }
  }
  return facts;
}

// What the open point is compared with: {name, structure, delta} or null.
function comparedWith(view, p) {
  if (!p.layers) return null;
  const { page } = view;
  if (state.compare === "dense") {
    // A plain smaller model has sizes of its own.
    const own = page.points.find((q) => q.run === p.run && q.method === "dense" && q.layers) ?? p;
    const shape = page.shapes[own.layers.shape];
    const structure = {
      shape: own.layers.shape,
      heads: shape.names.map((_, i) => Array(shape.heads[i]).fill(shape.head_dim[i])),
      units: shape.hidden,
      tokens: shape.tokens,
      last: null,
    };
    return { name: "the dense model", structure, macs: p.macs_dense, top1: view.dense[p.run].top1 };
  }
  const group = neighbourOf(view, p, state.compare === "larger" ? 1 : -1);
  if (!group || !group.best.layers) return null;
  const top1 = group.members.map((m) => m.test_top1).filter(known);
  return {
    name: `${group.method} at ${asked(group)}`,
    structure: group.best.layers,
    macs: group.best.macs,
    top1: top1.length ? mean(top1) : null,
    point: group.best,
  };
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

function keptCard(page, structure, other) {
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
        el("span", { class: "layer-name" }, name.replace(/^blocks\./, "block ")),
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
        "A square is a head, filled as far as its dims are kept; a tick on a bar is ",
        other.name,
        ".",
      )
    : null;
  return el("article", { class: "wide" }, el("h3", {}, "Kept in each layer"), rows, note);
}

function differenceCard(view, p, other) {
  const { page } = view;
  const pick = el(
    "select",
    { id: "compare", "aria-label": "Compare with" },
    ...Object.entries(COMPARE).map(([value, text]) => el("option", { value, selected: value === state.compare }, text)),
  );
  pick.addEventListener("change", () => {
    state.compare = pick.value;
    writeState();
    drawPoint(view);
    byId("compare").focus();
  });
  const card = el("article", { id: "difference" }, el("h3", {}, "Compared with the ", pick));
  if (!other) {
    card.append(
      el(
        "p",
        { class: "muted" },
        { smaller: "No point of the front costs less.", larger: "No point of the front costs more." }[state.compare] ||
          "Nothing to compare with.",
      ),
    );
    return card;
  }
  const said = [];
  if (known(other.macs)) said.push(`${signed((100 * (other.macs - p.macs)) / p.macs_dense, 1)} % of dense MACs`);
  const own = (groupOf(view, p)?.members || [p]).map((m) => m.test_top1).filter(known);
  if (known(other.top1) && own.length) said.push(`${points(other.top1 - mean(own))} of test top-1`);
  const go = other.point
    ? el("button", { type: "button", class: "link", onclick: () => choose(other.point) }, other.name)
    : other.name;
  card.append(el("p", {}, go, said.length ? `: ${said.join(", ")}.` : "."));
  if (other.structure.shape !== p.layers.shape) {
    card.append(el("p", { class: "muted" }, "Its layers have other dense sizes: nothing to compare layer by layer."));
    return card;
  }
  const names = page.shapes[p.layers.shape].names;
  const [mine, theirs] = [layerSizes(page, p.layers), layerSizes(page, other.structure)];
  const body = el("tbody");
  for (const [i, name] of names.entries()) {
    const cells = ["heads", "width", "units", "tokens"].map((key) => {
      const change = theirs[i][key] - mine[i][key];
      return el("td", { class: change ? "" : "same" }, change ? `${mine[i][key]} → ${theirs[i][key]}` : "same");
    });
    body.append(el("tr", {}, el("th", { scope: "row" }, name.replace(/^blocks\./, "block ")), ...cells));
  }
  const head = el("tr", {}, ...["Layer", "Heads", "Head dim", "MLP units", "Tokens"].map((t) => el("th", { scope: "col" }, t)));
  card.append(el("div", { class: "scroll" }, el("table", { class: "plain" }, el("thead", {}, head), body)));
  return card;
}

// One picture of the patch grid for each layer.
function tokenCard(page, structure, other) {
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
        el(
          "figcaption",
          {},
          name.replace(/^blocks\./, "block "),
          el("small", {}, `${structure.tokens[layer]} of ${shape.tokens[layer]}`),
        ),
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

function trainingCard() {
  return el(
    "article",
    { class: "wide", id: "training" },
    el(
      "div",
      { class: "section-head" },
      el("h3", {}, "Training"),
      el(
        "span",
        { class: "downloads" },
        el("button", { type: "button", "data-figure": "training-figure", "data-format": "svg" }, "SVG"),
      ),
    ),
    el("div", { id: "training-figure", class: "figure small-figure" }),
  );
}

function drawTraining(view, p, group) {
  const node = byId("training-figure");
  const members = (group ? group.members : [p]).filter((m) => m.curve);
  if (!members.length) {
    node.replaceChildren(el("p", { class: "muted" }, "No epochs are on record for this point."));
    return;
  }
  if (!window.Plotly) return;
  const colours = theme();
  const colour = seriesStyle(view.page, p.run, p.method).colour;
  const traces = [];
  for (const m of [...members.filter((m) => m !== p), ...members.filter((m) => m === p)]) {
    const own = m === p;
    const common = {
      type: "scatter",
      mode: "lines",
      x: m.curve.epoch,
      line: { color: colour, width: own ? 2 : 1 },
      opacity: own ? 1 : 0.35,
      name: `seed ${m.seed}`,
    };
    traces.push({ ...common, y: m.curve.val, hovertemplate: `seed ${m.seed}, epoch %{x}: %{y:.2f} %<extra></extra>` });
    traces.push({
      ...common,
      y: m.curve.loss,
      xaxis: "x2",
      yaxis: "y2",
      hovertemplate: `seed ${m.seed}, epoch %{x}: %{y:.4f} nats<extra></extra>`,
    });
  }
  const dense = view.dense[p.run].rows.map((row) => row.val_top1).filter(known);
  const compare = dense.length > 0 && p.method !== "dense";
  const level = compare ? mean(dense) : 0;
  const shapes = compare
    ? [
        {
          type: "line",
          xref: "x domain",
          yref: "y",
          x0: 0,
          x1: 1,
          y0: level,
          y1: level,
          line: { color: colours.muted, width: 1, dash: "dot" },
        },
      ]
    : [];
  drawPanels(
    "training-figure",
    traces,
    [compare ? "validation top-1, % (dots: dense)" : "validation top-1, %", "training loss, nats"],
    node.clientWidth < 560,
    colours,
    "epoch",
    { shapes },
  );
}

function loadCard(page, p) {
  const card = el("article", { id: "load", class: "wide" }, el("h3", {}, "Load it"));
  if (!p.model_path) {
    card.append(el("p", { class: "muted" }, "No model was saved for this point."));
    return card;
  }
  const [base, options] = page.runs[p.run].uri.split(/(?=\?)/); // of a store's URI; a local path has no options
  const path = `${base}/${p.model_path}${options || ""}`;
  const shell = `'${path.replace(/'/g, `'\\''`)}'`;
  const code = (text) => el("div", { class: "code" }, el("pre", {}, text), copyButton(text));
  card.append(
    code(`from slimsweep import load\nmodel = load(${JSON.stringify(path)})`),
    code(`slimsweep export ${shell} --format onnx`),
    el("p", { class: "muted small" }, "It lies in ", el("code", {}, path), " as safetensors and JSON."),
  );
  return card;
}
