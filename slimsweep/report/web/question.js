// The question box: "at most 1.2 GMACs and at least 80 %" to conditions, and conditions to a model.

const AT_MOST = /^(?:at most|no more than|not more than|less than|fewer than|under|below|up to|within|max(?:imum)?|<=|≤|<)\s*/i;
const AT_LEAST = /^(?:at least|no less than|not less than|more than|over|above|from|min(?:imum)?|>=|≥|>)\s*/i;
const SIZES = { "": 1, k: 1e3, m: 1e6, g: 1e9, b: 1e9, t: 1e12 };

// Units, in the order in which they are tried. `most`: what the number means when neither "at most" nor "at least" is said.
const UNITS = [
  { pattern: /^points?(?: (?:of|below|from|under) dense)?$/i, kind: "drop", most: true, size: () => 1 },
  {
    pattern: /^(?:%|percent) (?:of )?(?:the )?(?:dense|macs|flops)(?: macs| model)?$/i,
    kind: "share",
    most: true,
    size: () => 1,
  },
  { pattern: /^(?:%|percent|pct) ?(?:test )?(?:top-?5)$/i, kind: "top5", most: false, size: () => 1 },
  { pattern: /^(?:%|percent|pct) ?(?:val(?:idation)? ?)?(?:top-?1|accuracy|acc)?$/i, kind: "top1", most: false, size: () => 1 },
  { pattern: /^(?:ms|milliseconds?)(?: latency)?$/i, kind: "latency", most: true, size: () => 1 },
  { pattern: /^(?:us|µs|microseconds?)(?: latency)?$/i, kind: "latency", most: true, size: () => 1e-3 },
  { pattern: /^(?:s|seconds?)(?: latency)?$/i, kind: "latency", most: true, size: () => 1e3 },
  {
    pattern: /^(k?) ?(?:images?|img|imgs)(?: ?\/ ?s(?:ec|econd)?| per second)$/i,
    kind: "throughput",
    most: false,
    size: (m) => SIZES[m[1].toLowerCase()],
  },
  {
    pattern: /^([kmg]) ?i?(?:b|bytes?)(?: on disk)?$/i,
    kind: "model_bytes",
    most: true,
    size: (m, text) => (/i/i.test(text.slice(1, 2)) ? 1024 ** " kmg".indexOf(m[1].toLowerCase()) : SIZES[m[1].toLowerCase()]),
  },
  {
    pattern: /^([kmgbt]?) ?(?:params?|parameters?|weights)$/i,
    kind: "params",
    most: true,
    size: (m) => SIZES[m[1].toLowerCase()],
  },
  {
    pattern: /^([kmgt]?) ?-?(?:macs?|flops?|madds?|multiply-?(?:adds|accumulates))?$/i,
    kind: "macs",
    most: true,
    size: (m) => SIZES[m[1].toLowerCase()],
  },
];

// Conditions {kind, most, value}, or {problem}: one sentence on what could not be read.
function parseQuestion(text) {
  const clauses = text
    .replace(/(\d),(?=\d{3}(?!\d))/g, "$1") // 1,200 is twelve hundred
    .replace(/(\d),(?=\d)/g, "$1.") // 1,2 is 1.2
    .split(/\s*(?:[,;&]|\band\b|\bbut\b|\bwith\b)\s*/i)
    .filter((clause) => clause.trim());
  const conditions = [];
  for (const clause of clauses) {
    let rest = clause.trim();
    let most = null;
    if (AT_MOST.test(rest)) [most, rest] = [true, rest.replace(AT_MOST, "")];
    else if (AT_LEAST.test(rest)) [most, rest] = [false, rest.replace(AT_LEAST, "")];
    const number = rest.match(/^(\d+(?:\.\d*)?|\.\d+)\s*(.*)$/);
    const unit = number && UNITS.find((u) => u.pattern.test(number[2].trim()));
    if (!unit || (unit.kind === "macs" && !number[2].trim())) {
      return {
        problem: `\u201c${clause.trim()}\u201d is not a condition: say how much of what, as in \u201cat most 1.2 GMACs\u201d, \u201cat least 80 %\u201d, \u201cat most 5 ms\u201d`,
      };
    }
    const unitText = number[2].trim();
    conditions.push({
      kind: unit.kind,
      most: most ?? unit.most,
      value: Number(number[1]) * unit.size(unitText.match(unit.pattern), unitText),
      text: clause.trim(),
    });
  }
  return { conditions };
}

// The value of a point that a condition is about; null where it is not known.
function measuredBy(view, condition) {
  const { page } = view;
  switch (condition.kind) {
    case "top1":
      return (p) => (judged(p) === -Infinity ? null : judged(p));
    case "top5":
      return (p) => p.test_top5;
    case "drop": // by validation, against the retrained dense model's
      return (p) => {
        const dense = view.dense[p.run].rows.filter((row) => known(row.val_top1));
        return dense.length && known(p.val_top1) ? mean(dense.map((row) => row.val_top1)) - p.val_top1 : null;
      };
    case "share":
      return (p) => (p.macs_dense ? (100 * p.macs) / p.macs_dense : null);
    case "latency":
    case "throughput": {
      const timed = view.metrics.x.filter((m) => m.kind === condition.kind);
      // The setting on the axis if it is one; else the first.
      const metric = timed.find((m) => m.setting === view.x.setting) || timed[0];
      condition.setting = metric?.setting;
      return metric ? metric.of : () => null;
    }
    default:
      return (p) => p[condition.kind];
  }
}

// {conditions, fits: Set of points, answer: point or null, said: text} or {problem}; null for an empty question.
function answerQuestion(view, text) {
  if (!text.trim()) return null;
  if (view.mixed) return { problem: "Choose one data set first: accuracies on different data sets do not compare" };
  const parsed = parseQuestion(text);
  if (parsed.problem) return parsed;
  const { conditions } = parsed;
  const candidates = view.shown.filter((p) => p.status === "ok");
  const readers = conditions.map((c) => measuredBy(view, c));
  for (const [i, condition] of conditions.entries()) {
    if (candidates.length && !candidates.some((p) => known(readers[i](p)))) {
      const missing =
        condition.kind === "latency" || condition.kind === "throughput"
          ? "no point has been timed yet: run slimsweep bench"
          : "no point has that number";
      return { problem: `\u201c${condition.text}\u201d cannot be answered: ${missing}` };
    }
  }
  const meets = (p, i) =>
    known(readers[i](p)) && (conditions[i].most ? readers[i](p) <= conditions[i].value : readers[i](p) >= conditions[i].value);
  const fits = candidates.filter((p) => conditions.every((_, i) => meets(p, i)));
  // A limit on cost asks for the best model; a demand on quality alone asks for the cheapest.
  const limited = conditions.some((c) => !["top1", "top5", "drop"].includes(c.kind));
  const better = limited
    ? (a, b) => judged(b) - judged(a) || a.macs - b.macs
    : (a, b) => a.macs - b.macs || judged(b) - judged(a);
  const answer = [...fits].sort(better)[0] || null;
  return {
    conditions,
    fits: new Set(fits),
    answer,
    limited,
    nearest: answer ? null : nearestMiss(conditions, readers, candidates),
  };
}

// Where nothing fits: the condition that no point meets by itself, and the point that comes nearest.
function nearestMiss(conditions, readers, candidates) {
  for (const [i, condition] of conditions.entries()) {
    const measured = candidates.filter((p) => known(readers[i](p)));
    if (!measured.length) continue;
    const nearest = measured.reduce((a, b) =>
      (condition.most ? readers[i](b) < readers[i](a) : readers[i](b) > readers[i](a)) ? b : a,
    );
    const value = readers[i](nearest);
    if (condition.most ? value > condition.value : value < condition.value) return { condition, point: nearest, value };
  }
  return null;
}

function sayValue(kind, value) {
  if (kind === "macs") return scaled(value, "MACs");
  if (kind === "params") return scaled(value, " parameters");
  if (kind === "model_bytes") return scaled(value, "B");
  if (kind === "latency") return `${significant(value)} ms`;
  if (kind === "throughput") return `${significant(value)} images/s`;
  if (kind === "drop") return `${fixed(value)} points below dense`;
  if (kind === "share") return `${significant(value)} % of the dense model's MACs`;
  return percent(value);
}
