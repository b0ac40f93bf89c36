// Everything around the figure: what is under way, the headline, switches, methods compared, failures.

function drawLive(page) {
  const live = byId("live");
  live.replaceChildren();
  for (const run of page.runs) {
    const s = run.standing;
    if (!s || (s.finished && page.runs.length > 1 && !s.failed)) continue;
    const box = el("div", { class: "standing" });
    if (!s.finished || s.failed) {
      const label = `${s.done} of ${s.planned} points done, ${s.failed} failed, ${s.running} running`;
      const progress = el("div", { class: "progress", role: "img", "aria-label": s.planned ? label : s.next });
      for (const [name, n] of Object.entries(shares(s))) {
        const piece = el("span", { class: name });
        piece.style.flexGrow = n;
        progress.append(piece);
      }
      const said = [];
      if (s.planned) said.push(`${s.done} of ${count(s.planned, "point")} done`, `${s.failed} failed`, `${s.running} running`);
      if (page.runs.length > 1) said.unshift(run.name);
      const line = el(
        "p",
        {},
        el("b", {}, said.join(", ")),
        said.length ? ". " : "",
        s.next ? `${s.next[0].toUpperCase()}${s.next.slice(1)}.` : "",
      );
      if (s.failed) line.append(" ", el("a", { href: "#failed", onclick: jump }, "What failed"), ".");
      box.append(progress, line);
    }
    if (!s.finished) {
      const parts = [...s.stages.filter((p) => p.state !== "done"), ...s.points.filter((p) => p.state === "running")];
      if (parts.length) {
        box.append(
          el(
            "p",
            { class: "muted small" },
            parts
              .map(
                (p) =>
                  `${p.name}: ${p.state === "waiting" ? "waiting" : `epoch ${p.epochs} of ${p.epochs_total}`}${known(p.val_top1) ? `, validation top-1 ${percent(p.val_top1)}` : ""}`,
              )
              .join(" · "),
          ),
        );
      }
    }
    if (box.childNodes.length) live.append(box);
  }
}

// Lengths of the progress bar's parts: points, or epochs of the stages before there are points.
function shares(s) {
  if (s.planned)
    return {
      done: s.done,
      failed: s.failed,
      running: s.running,
      waiting: Math.max(0, s.planned - s.done - s.failed - s.running),
    };
  const total = s.stages.reduce((sum, stage) => sum + stage.epochs_total, 0);
  const done = s.stages.reduce((sum, stage) => sum + stage.epochs, 0);
  return { done, waiting: Math.max(total - done, total ? 0 : 1) };
}

// Links inside the page: the address holds the choices, so it must not become a place.
function jump(event) {
  event.preventDefault();
  document.querySelector(event.currentTarget.getAttribute("href")).scrollIntoView();
}

function drawHeadline(view) {
  const { page } = view;
  const node = byId("headline");
  node.hidden = page.runs.length > 1 || !view.groups.length;
  if (node.hidden) return;
  const run = 0;
  const dense = view.dense[run];
  const groups = groupsOf(view.shown, view.metrics.x.find((m) => m.key === "macs") || view.x, QUALITY_TEST);
  const stat = (term, value, note, point) => {
    const inner = [el("dt", {}, term), el("dd", {}, value), el("small", {}, note)];
    return point ? el("button", { type: "button", onclick: () => choose(point) }, ...inner) : el("div", {}, ...inner);
  };
  const stats = [];
  if (dense.rows.length) {
    const spread = standardError(dense.rows.map((p) => p.test_top1));
    stats.push(
      stat(
        "Dense, retrained",
        `${withSpread(dense.top1, spread)} %`,
        `test top-1 at ${scaled(dense.rows[0].macs, "MACs")}`,
        bestOf(dense.rows),
      ),
    );
  } else if (known(dense.top1)) stats.push(stat("Dense, untouched", percent(dense.top1), "test top-1"));
  // Chosen by validation, told by test.
  const denseVal = dense.rows.map((p) => p.val_top1).filter(known);
  const overSeeds = (group) => mean(group.members.map(judged));
  const near = (group) => group.method !== "dense" && overSeeds(group) >= mean(denseVal) - 1;
  const close = denseVal.length ? groups.filter(near) : [];
  if (close.length) {
    const least = close.reduce((a, b) => (b.x < a.x ? b : a));
    stats.push(
      stat(
        "Smallest within 1 point",
        `${share(least.best.macs, least.best.macs_dense)} of MACs`,
        `by validation; test ${points(least.y - dense.top1)}`,
        least.best,
      ),
    );
  }
  if (view.knee)
    stats.push(
      stat(
        "Knee",
        `${share(view.knee.best.macs, view.knee.best.macs_dense)} of MACs`,
        `${view.y.label} ${show(view.y, view.knee.y)}`,
        view.knee.best,
      ),
    );
  const top = groups.reduce((a, b) => (overSeeds(b) > overSeeds(a) ? b : a));
  stats.push(
    stat("Most accurate", `${withSpread(top.y, top.se)} %`, `test top-1, ${top.method} at ${asked(top)}`, top.best),
  );
  node.replaceChildren(...stats);
}

const QUALITY_TEST = { ...QUALITIES[0], of: (p) => p.test_top1 };

function drawControls(view) {
  const { page } = view;
  const select = (label, id, options, value, change) => {
    const node = el(
      "select",
      { id },
      ...options.map(([v, text]) => el("option", { value: v, selected: String(v) === String(value) }, text)),
    );
    node.addEventListener("change", () => {
      change(node.value);
      update();
      byId(id).focus();
    });
    return el("label", {}, label, " ", node);
  };
  const check = (label, id, value, change) => {
    const node = el("input", { type: "checkbox", id, checked: value });
    node.addEventListener("change", () => {
      change(node.checked);
      update();
      byId(id).focus();
    });
    return el("label", { class: "check" }, node, label);
  };
  const controls = [];
  if (page.datasets.length > 1)
    controls.push(
      select(
        "Data set",
        "data",
        [...page.datasets.map((d, i) => [i, d.name]), ["all", "all on one axis"]],
        state.data,
        (v) => (state.data = v === "all" ? "all" : Number(v)),
      ),
    );
  if (view.metrics.y.length > 1)
    controls.push(
      select(
        "Show",
        "y",
        view.metrics.y.map((m) => [m.key, m.label]),
        view.y.key,
        (v) => (state.y = v),
      ),
    );
  if (view.metrics.x.length > 1)
    controls.push(
      select(
        "against",
        "x",
        view.metrics.x.map((m) => [m.key, m.label]),
        view.x.key,
        (v) => ((state.x = v), (state.xscale = "")),
      ),
    );
  if (page.runs.length > 1)
    controls.push(
      select(
        "Colours",
        "colour",
        [
          ["run", "a run each"],
          ["method", "a method each"],
        ],
        colourBy(page),
        (v) => (state.colour = v),
      ),
    );
  controls.push(
    check("log x", "logx", view.logx, (v) => (state.xscale = v ? "log" : "linear")),
    check("log y", "logy", view.logy, (v) => (state.yscale = v ? "log" : "linear")),
  );
  controls.push(check("dominated points", "dominated", state.dominated, (v) => (state.dominated = v)));
  if (page.points.some((p) => p.seed !== page.points[0].seed))
    controls.push(check("single seeds", "seeds", state.seeds, (v) => (state.seeds = v)));
  byId("controls").replaceChildren(...(page.points.length ? controls : []));
  byId("question").hidden = !page.points.length;
  document.querySelector("#frontier .downloads").hidden = !view.groups.length;
}

function drawChips(view) {
  const { page } = view;
  const toggle = (key, icon, text) => {
    const button = el("button", { type: "button", "aria-pressed": String(!state.off.has(key)), "data-key": key }, icon, text);
    button.addEventListener("click", () => {
      if (!state.off.delete(key)) state.off.add(key);
      update();
      document.querySelector(`#chips [data-key="${CSS.escape(key)}"]`)?.focus();
    });
    return button;
  };
  const inSet = page.points.filter((p) => p.status === "ok" && inData(page, p));
  const methods = page.methods.filter((m) => inSet.some((p) => p.method === m));
  const chips = [];
  const ink = theme().muted;
  if (methods.length > 1)
    for (const m of methods)
      chips.push(toggle(`m:${m}`, markerIcon(page, m, colourBy(page) === "method" ? shade(methodStyle(page, m)) : ink), m));
  const runs = page.runs
    .map((_, r) => r)
    .filter((r) => page.runs[r].points && (state.data === "all" || page.runs[r].dataset === state.data));
  if (runs.length > 1) {
    for (const r of runs) {
      const style = seriesStyle(page, r, "searched");
      const dash = { solid: "", dash: "5 3", dot: "2 2.5", longdash: "8 3" }[style.dash];
      const line = svg(
        "svg",
        { viewBox: "0 0 22 8", width: 22, height: 8, "aria-hidden": "true" },
        svg("path", {
          d: "M0 4h22",
          stroke: colourBy(page) === "run" ? style.colour : ink,
          "stroke-width": 2.5,
          "stroke-dasharray": dash,
        }),
      );
      chips.push(toggle(`r:${page.runs[r].name}`, line, page.runs[r].name));
    }
  }
  byId("chips").replaceChildren(...chips);
}

function drawMixing(view) {
  const { page } = view;
  const node = byId("mixing");
  node.hidden = page.datasets.length < 2;
  if (node.hidden) return;
  const names = page.datasets.map((d) => d.name).join(", ");
  node.replaceChildren(
    view.mixed
      ? `These runs were trained on ${page.datasets.length} data sets (${names}) and share this axis because you asked for it: accuracies on different data sets do not compare. Each data set has its own front.`
      : `These runs were trained on ${page.datasets.length} data sets (${names}), and accuracies on different data sets do not compare. Shown: ${page.datasets[state.data].name}.`,
  );
}

function drawAnswer(view) {
  const node = byId("answer");
  const a = view.answer;
  byId("question-clear").hidden = !state.question;
  node.className = a?.problem || (a && !a.answer) ? "unanswered" : "";
  if (!a) return node.replaceChildren();
  if (a.problem) return node.replaceChildren(a.problem);
  if (!a.answer) {
    const miss = a.nearest;
    return node.replaceChildren(
      "No model fits. ",
      miss
        ? `Nearest to \u201c${miss.condition.text}\u201d comes ${miss.point.method} at ${asked(miss.point)}, with ${sayValue(miss.condition.kind, miss.value)}.`
        : "Each condition is met by some model, all of them by none.",
    );
  }
  const p = a.answer;
  const run = view.page.runs.length > 1 ? ` of ${view.page.runs[p.run].name}` : "";
  const setting = a.conditions.map((c) => c.setting).find(Boolean);
  node.replaceChildren(
    el("button", { type: "button", class: "link", onclick: () => choose(p) }, `${p.method} at ${asked(p)}${run}`),
    `: ${scaled(p.macs, "MACs")}, test top-1 ${percent(p.test_top1)} (validation ${percent(p.val_top1)}). ${a.limited ? "The most accurate" : "The cheapest"} of the ${count(a.fits.size, "model")} that fit; accuracy is judged by validation${setting ? `, speed by ${setting}` : ""}.`,
  );
  return node;
}

function drawExamples(view) {
  const node = byId("examples");
  const ok = view.page.points.filter((p) => p.status === "ok");
  if (!ok.length || node.childNodes.length) return;
  const half = significant((0.5 * ok[0].macs_dense) / prefixOf(ok[0].macs_dense)[0], 2);
  const examples = [`at most ${half} ${prefixOf(ok[0].macs_dense)[1]}MACs`, "within 1 point of dense"];
  const timed = view.metrics.x.find((m) => m.kind === "latency");
  if (timed) {
    const times = ok
      .map(timed.of)
      .filter(known)
      .sort((a, b) => a - b);
    examples.push(`at most ${significant(times[Math.floor(times.length / 2)], 2)} ms`);
  }
  for (const text of examples) {
    node.append(el("button", { type: "button", class: "link", onclick: () => ask(text) }, text));
  }
}

function drawFailed(page) {
  const failed = page.points.filter((p) => p.status !== "ok");
  const section = byId("failed");
  section.hidden = !failed.length;
  section.replaceChildren(
    el("h2", { id: "failed-title" }, failed.length === 1 ? "A point that failed" : "Points that failed"),
    el("p", { class: "caption" }, "They count nowhere on this page. The command that started the run tries them again."),
    ...failed.map((p) =>
      el(
        "details",
        { open: failed.length <= 3 },
        el("summary", {}, page.runs.length > 1 ? `${page.runs[p.run].name}: ` : "", el("code", {}, p.point)),
        el("pre", { class: "error" }, p.error || "no error text"),
      ),
    ),
  );
}

// How good a method is over all budgets, in one number with its spread.
function drawMethods(view) {
  const { page } = view;
  const section = byId("methods");
  const rows = page.runs.flatMap((run, r) => run.hypervolume.map((h) => ({ ...h, run, r })));
  section.hidden = !rows.length;
  if (!rows.length) return;
  const several = page.runs.length > 1;
  const parts = [
    el("h2", { id: "methods-title" }, several ? "Runs and methods" : "Methods"),
    el(
      "p",
      { class: "caption" },
      "Hypervolume: the area under a method's stepped front, from 0 % up and as far as the largest dense model of the data set, divided by that width. It is the test top-1 to be had, averaged over all MACs limits (0 where no model is small enough). Mean ± standard error over seeds, on the budgets that all seeds of a method have; methods compare where their budgets are the same.",
    ),
  ];
  const titles = [...(several ? ["Run", "Model"] : []), "Method", "Hypervolume", "", "Budgets", "Seeds"];
  const head = el(
    "tr",
    {},
    ...titles.map((t) => el("th", { scope: "col", class: ["Run", "Model", "Method"].includes(t) ? "text" : "" }, t)),
  );
  const table = el("table", { class: "plain methods" }, el("thead", {}, head));
  for (const set of page.datasets) {
    const here = rows.filter((row) => set.runs.includes(row.r)).sort((a, b) => b.mean - a.mean);
    if (!here.length) continue;
    const low = Math.min(...here.map((row) => row.mean - (row.se ?? 0)));
    const high = Math.max(...here.map((row) => row.mean + (row.se ?? 0)));
    const reach = `as far as ${scaled(set.reference_macs, "MACs")}`;
    const body = el(
      "tbody",
      {},
      el(
        "tr",
        {},
        el(
          "th",
          { scope: "rowgroup", colspan: titles.length, class: "text" },
          page.datasets.length > 1 ? `${set.name}, ${reach}` : reach[0].toUpperCase() + reach.slice(1),
        ),
      ),
    );
    for (const row of here) {
      const { colour } = seriesStyle(page, row.r, row.method);
      body.append(
        el(
          "tr",
          {},
          ...(several ? [el("td", { class: "text" }, row.run.name), el("td", { class: "text" }, row.run.model)] : []),
          el("td", { class: "text" }, markerIcon(page, row.method, colour), " ", row.method),
          el("td", {}, `${withSpread(row.mean, row.se)} %`),
          el("td", { class: "gauge" }, here.length > 1 ? interval(row, low, high, colour) : null),
          el("td", {}, String(row.budgets)),
          el("td", {}, String(row.seeds)),
        ),
      );
    }
    table.append(body);
  }
  section.replaceChildren(...parts, el("div", { class: "scroll" }, table));
}

// A mean and its standard error on a scale that all rows share.
function interval(row, low, high, colour) {
  const at = (value) => 4 + (192 * (value - low)) / (high - low || 1);
  const picture = svg(
    "svg",
    { viewBox: "0 0 200 14", width: 200, height: 14, "aria-hidden": "true" },
    svg("path", { d: "M0 7h200", class: "axis" }),
  );
  if (known(row.se))
    picture.append(
      svg("path", { d: `M${at(row.mean - row.se)} 7H${at(row.mean + row.se)}`, stroke: colour, "stroke-width": 3 }),
    );
  picture.append(svg("circle", { cx: at(row.mean), cy: 7, r: 4, fill: colour }));
  return picture;
}

// While a sweep runs the page looks again now and then, but never under a person's hands.
function refreshLater(page) {
  if (!page.refresh_seconds) return;
  let busy = 0;
  for (const kind of ["keydown", "pointerdown", "wheel"]) addEventListener(kind, () => (busy = Date.now()), { passive: true });
  let paused = false;
  const pause = el("button", { type: "button", class: "quiet", id: "pause", "aria-pressed": "false" }, "Pause");
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  byId("live").append(
    el("p", { class: "muted small", id: "refresh" }, `This page refreshes itself every ${page.refresh_seconds} s. `, pause),
  );
  setInterval(() => {
    if (paused || document.hidden || Date.now() - busy < 5000) return;
    // The browser's own memory of the place fails: the page is short until it has unpacked itself.
    history.replaceState({ scroll: scrollY }, "");
    location.reload();
  }, page.refresh_seconds * 1000);
}

function drawWritten() {
  const node = byId("written");
  const at = new Date(node.dateTime);
  node.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
