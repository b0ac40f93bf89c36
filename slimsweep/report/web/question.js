// The question box: "at most 1.2 GMACs and at least 80 %" to conditions, and conditions to a model.

import { fixed, known, percent, scaled, significant } from "./format.js";
import { costName, judged, LATENCIES, latencyMetric, measureOf, trainedOf, valueOf } from "./metrics.js";

/** @import { Answer, Condition, Group, View } from "./types.js" */

/** @typedef {(group: Group) => number | null | undefined} Reader */

/**
 * Of each measure, by its name: a question that suits it, and how its least value is asked for.
 * @type {Record<string, { example: string, least: string }>}
 */
export const EXAMPLES = {
  top1: { example: "within 1 point of dense", least: "at least 80 %" },
  r2: { example: "at least 0.95 R2", least: "at least 0.95 R2" },
};
const QUALITIES = new Set(["top1", "r2", "top5", "drop", "val_knn_top1", "val_probe_top1"]); // kinds that are no cost

const AT_MOST = /^(?:at most|no more than|not more than|less than|fewer than|under|below|up to|within|max(?:imum)?|<=|≤|<)\s*/i;
const R2 = /^(?:an? )?r[2²](?: of)?\s+(?=.)/i; // before its number
const AT_LEAST = /^(?:at least|no less than|not less than|more than|over|above|from|min(?:imum)?|>=|≥|>)\s*/i;
const WITHIN = /^within\s/i;
const GOAL =
  /^\s*(?:the )?(best|most accurate|cheapest|smallest)\b(?: (?:models?|one)\b)?(?:,| (?:with|at|of|that (?:is|has))\b)?\s*/i;
// What a number is of, before it: "accuracy at least 89 %", "MACs < 3M".
const NAME =
  /^((?:val(?:idation)? )?(?:accuracy|acc|top-?1)|top-?5|macs|flops|params|parameters|latency|budget)\s*(?:is |of )?\s*(?=[\d.<>≤≥=]|at |no |not |less |fewer |under |below |up |max|more |over |above |min)/i;
const IN_PERCENT = /^(?:val|acc|top)/i; // names whose numbers need no "%"
/** @type {Record<string, number>} */
const SIZES = { "": 1, k: 1e3, m: 1e6, g: 1e9, b: 1e9, t: 1e12 };

// Units, in the order in which they are tried. `most`: what the number means when neither "at most" nor "at least" is said.
/**
 * @type {{ pattern: RegExp, kind: string, most: boolean, size: (match: RegExpMatchArray, text: string) => number }[]}
 */
const UNITS = [
  { pattern: /^points?(?: (?:of|below|from|under) dense)?$/i, kind: "drop", most: true, size: () => 1 },
  {
    pattern: /^(?:%|percent) (?:of )?(?:the )?(?:dense|macs|flops)(?: macs| model)?$/i,
    kind: "share",
    most: true,
    size: () => 1,
  },
  {
    pattern: /^(?:%|percent) (?:of )?(?:the )?(?:params?|parameters|weights)$/i,
    kind: "share_params",
    most: true,
    size: () => 1,
  },
  { pattern: /^r[2²]$/i, kind: "r2", most: false, size: () => 1 },
  {
    pattern: /^(?:%|percent|pct) ?(?:val(?:idation)? ?)?k-?nn(?: (?:top-?1|accuracy))?$/i,
    kind: "val_knn_top1",
    most: false,
    size: () => 1,
  },
  {
    pattern: /^(?:%|percent|pct) ?(?:val(?:idation)? ?)?(?:linear )?prob(?:e|ing)(?: (?:top-?1|accuracy))?$/i,
    kind: "val_probe_top1",
    most: false,
    size: () => 1,
  },
  { pattern: /^(?:%|percent|pct) ?(?:of )?(?:the )?budget$/i, kind: "budget", most: true, size: () => 1 },
  { pattern: /^(?:%|percent|pct) ?(?:test )?(?:top-?5)$/i, kind: "top5", most: false, size: () => 1 },
  { pattern: /^(?:%|percent|pct) ?(?:val(?:idation)? ?)?(?:top-?1|accuracy|acc)?$/i, kind: "top1", most: false, size: () => 1 },
  { pattern: /^(?:ms|milliseconds?)(?: latency)?$/i, kind: "latency_p50_ms", most: true, size: () => 1 },
  { pattern: /^(?:us|µs|microseconds?)(?: latency)?$/i, kind: "latency_p50_ms", most: true, size: () => 1e-3 },
  { pattern: /^(?:s|seconds?)(?: latency)?$/i, kind: "latency_p50_ms", most: true, size: () => 1e3 },
  {
    pattern: /^(k?) ?(?:images?|img|imgs)(?: ?\/ ?s(?:ec|econd)?| per second)$/i,
    kind: "images_per_second",
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

const BARE = /^(?:%|percent|pct)$/i; // of what, is not said
const FLOPS = /flops?$/i;
const OF_DENSE = /^(?:%|percent|pct)(?: (?:of|from|below) (?:the )?dense(?: model)?)?$/i;

/**
 * A number's unit together with the name that stood before it.
 * @param {string} text
 * @param {string} name empty where none did
 */
function withName(text, name) {
  if (!name || text.toLowerCase().endsWith(name.toLowerCase())) return text;
  return `${text || (IN_PERCENT.test(name) ? "%" : "")} ${name}`.trim();
}

/** What is said of FLOPs, which some count double. */
export const FLOPS_NOTE =
  "FLOPs are taken as multiply-accumulates (MACs), as papers on vision transformers count them; where a multiply and an add count as 2 FLOPs, ask for half as many MACs";

/** @param {string} clause */
const unread = (clause) =>
  `\u201c${clause}\u201d is not a condition: say how much of what, as in \u201cat most 1.2 GMACs\u201d, \u201cat least 80 %\u201d, \u201cat most 5 ms\u201d`;

/**
 * The conditions of a question, or a problem: one sentence on what could not be read. And the model asked for, such as
 * "best", where it is said.
 * @param {string} text
 * @returns {{ conditions: Condition[], goal?: string, problem?: string }}
 */
export function parseQuestion(text) {
  const goal = text.match(GOAL)?.[1].toLowerCase();
  const clauses = text
    .replace(GOAL, "")
    .replace(/[?!\s]+$/, "")
    .replace(/(\d),(?=\d{3}(?!\d))/g, "$1") // 1,200 is twelve hundred
    .replace(/(\d),(?=\d)/g, "$1.") // 1,2 is 1.2
    .split(/\s*(?:[,;&]|\band\b|\bbut\b|\bwith\b)\s*/i)
    .filter((clause) => clause.trim());
  /** @type {Condition[]} */
  const conditions = [];
  for (const clause of clauses) {
    const name = clause.trim().match(NAME)?.[1] ?? "";
    let rest = clause.trim().replace(NAME, "").replace(R2, "");
    let named = !name && rest !== clause.trim(); // "R2 at least 0.95"
    /** @type {boolean | null} */
    let most = null;
    if (AT_MOST.test(rest)) [most, rest] = [true, rest.replace(AT_MOST, "")];
    else if (AT_LEAST.test(rest)) [most, rest] = [false, rest.replace(AT_LEAST, "")];
    if (R2.test(rest)) [named, rest] = [true, rest.replace(R2, "")]; // "at least an R2 of 0.95"
    if (named) rest += " R2";
    const number = rest.match(/^((?:\d+(?:\.\d*)?|\.\d+)(?:e\+?\d+)?)\s*(.*)$/i);
    const unitText = number ? withName(number[2].trim(), name) : "";
    const unit = number && UNITS.find((u) => u.pattern.test(unitText));
    if (!number || !unit || (unit.kind === "macs" && !unitText)) return { conditions: [], problem: unread(clause.trim()) };
    const near = WITHIN.test(clause.trim()) && OF_DENSE.test(unitText);
    if (near) {
      const note = "means percentage points below the dense model";
      conditions.push({ kind: "drop", most: true, value: Number(number[1]), text: clause.trim(), note });
      continue;
    }
    // "At most 50 %" asks for no accuracy: it is a budget, as the page calls them.
    const kind = most === true && BARE.test(unitText) ? "budget" : unit.kind;
    conditions.push({
      kind,
      most: most ?? unit.most,
      value: Number(number[1]) * unit.size(/** @type {RegExpMatchArray} */ (unitText.match(unit.pattern)), unitText),
      text: clause.trim(),
      ...(FLOPS.test(unitText) ? { note: FLOPS_NOTE } : {}),
      ...(most === null && BARE.test(unitText) ? { bare: true } : {}),
    });
  }
  return conditions.length ? { conditions, goal } : { conditions, problem: unread(text.trim()) };
}

/**
 * The value that a condition is about, as a mean over a group's seeds; null where it is not known. Says in the condition which
 * setting was timed, and of what a budget is.
 * @param {View} view
 * @param {Condition} condition
 * @returns {Reader}
 */
function measuredBy(view, condition) {
  switch (condition.kind) {
    case "top1":
    case "r2":
      return (g) => {
        const measure = measureOf(view.page, g.run);
        const value = measure.name === condition.kind ? judged(measure, g.mean) : -Infinity;
        return value === -Infinity ? null : value;
      };
    case "top5":
      return (g) => g.mean.test_top5;
    case "drop": // by validation, against the retrained dense model's
      return (g) => {
        const measure = measureOf(view.page, g.run);
        const [dense, own] = [view.dense[g.run].val, valueOf(g.mean, measure.val)];
        return known(dense) && known(own) ? (dense - own) / measure.point : null;
      };
    case "budget": {
      const units = new Set(view.page.groups.filter((g) => known(g.budget) && g.budget < 1).map((g) => costName(g.unit)));
      condition.note = `means a budget: a share of the dense model\u2019s ${[...units].join(" or ") || "MACs"}`;
      return (g) => (known(g.budget) ? 100 * g.budget : null);
    }
    case "share":
      return (g) => shareOf(g.mean.macs, g.best.macs_dense);
    case "share_params":
      return (g) => shareOf(g.mean.params, g.best.params_dense);
    case "latency_p50_ms":
    case "images_per_second": {
      const ofLatency = condition.kind === "latency_p50_ms";
      const timed = view.metrics.x.filter((m) => (ofLatency ? LATENCIES.includes(m.name) : m.name === condition.kind));
      // The setting on the axis if it is one; else the first.
      const metric = ofLatency ? latencyMetric(view) : (timed.find((m) => m.setting === view.x.setting) ?? timed[0]);
      condition.setting = metric?.setting;
      condition.metric = metric?.key;
      if (metric && ofLatency && timed.length > 1 && metric.key !== view.x.key)
        condition.note = `means ${metric.label}, one of ${timed.length} latencies here: put another on the x axis to ask about it`;
      return metric ? (g) => g.mean[metric.key] : () => null;
    }
    default:
      return (g) => valueOf(g.mean, condition.kind);
  }
}

/**
 * In percent.
 * @param {number | null | undefined} part
 * @param {number} whole
 */
const shareOf = (part, whole) => (known(part) && whole ? (100 * part) / whole : null);

/** @param {string} text @param {string} words */
const sure = (text, words) => `${words} ${text}${words === "at least" ? " accuracy" : ""}`;

/**
 * A question that can be read in two ways, asked back; null where it cannot.
 * @param {Condition[]} conditions
 * @param {string | undefined} goal
 * @param {Group[]} candidates
 * @returns {Answer | null}
 */
function askedBack(conditions, goal, candidates) {
  const doubtful = conditions.find(
    (c) => c.bare && candidates.some((g) => known(g.budget) && Math.abs(100 * g.budget - c.value) < 0.5),
  );
  if (!doubtful) return null;
  return {
    problem: `\u201c${doubtful.text}\u201d may be a budget or an accuracy. Which one?`,
    choices: ["at most", "at least"].map((words) =>
      [goal ? `${goal} with ` : "", conditions.map((c) => (c === doubtful ? sure(c.text, words) : c.text)).join(", ")].join(""),
    ),
  };
}

const ROUNDING = 1e-9; // relative: 0.1 + 0.2 meets "at most 0.3"

/**
 * The answer to a question, or a problem; null for an empty question. Models are means over seeds: no seed answers by luck.
 * @param {View} view
 * @param {string} text
 * @returns {Answer | null}
 */
export function answerQuestion(view, text) {
  if (!text.trim()) return null;
  if (view.mixed) return { problem: "Choose one data set first: accuracies on different data sets do not compare" };
  const parsed = parseQuestion(text);
  if (parsed.problem !== undefined) return parsed;
  const { conditions, goal } = parsed;
  const shown = new Set(view.shown);
  const candidates = view.page.groups.filter((g) => g.members.some((p) => shown.has(p)));
  const back = askedBack(conditions, goal, candidates);
  if (back) return back;
  const readers = conditions.map((c) => measuredBy(view, c));
  for (const [i, condition] of conditions.entries()) {
    if (candidates.length && !candidates.some((g) => known(readers[i](g)))) {
      const missing =
        condition.kind === "latency_p50_ms" || condition.kind === "images_per_second"
          ? "no point has been timed yet: run slimsweep bench, or set latency in the configuration"
          : condition.kind in EXAMPLES
            ? judgedOtherwise(view, candidates)
            : "no point has that number";
      return { problem: `\u201c${condition.text}\u201d cannot be answered: ${missing}` };
    }
  }
  const meets = (/** @type {Group} */ g, /** @type {number} */ i) => {
    const value = readers[i](g);
    const room = ROUNDING * Math.abs(conditions[i].value);
    return known(value) && (conditions[i].most ? value <= conditions[i].value + room : value >= conditions[i].value - room);
  };
  const fits = candidates.filter((g) => conditions.every((_, i) => meets(g, i)));
  // A limit on cost asks for the best model, one on quality alone for the cheapest.
  const limited = goal ? /best|accurate/.test(goal) : conditions.some((c) => !QUALITIES.has(c.kind));
  const quality = (/** @type {Group} */ g) => judged(measureOf(view.page, g.run), g.mean);
  const best = (/** @type {Group} */ a, /** @type {Group} */ b) => quality(b) - quality(a) || 0; // both -Infinity: NaN
  const cheapest = (/** @type {Group} */ a, /** @type {Group} */ b) =>
    (a.mean.macs ?? Infinity) - (b.mean.macs ?? Infinity) || 0;
  const better = (/** @type {Group} */ a, /** @type {Group} */ b) =>
    limited ? best(a, b) || cheapest(a, b) : cheapest(a, b) || best(a, b);
  const group = [...trainedOf(view.page, fits)].sort(better)[0] || null;
  return {
    conditions,
    fits: new Set(fits.flatMap((g) => g.members)),
    groups: fits,
    group,
    answer: group?.best ?? null,
    limited,
    nearest: group ? null : nearestMiss(conditions, readers, candidates),
  };
}

/**
 * Why no point has the measure that was asked for.
 * @param {View} view
 * @param {Group[]} candidates
 */
function judgedOtherwise(view, candidates) {
  const { name, title, test } = measureOf(view.page, candidates[0].run);
  if (!candidates.some((g) => known(valueOf(g.mean, test)))) return "no point has that number";
  return `these models are judged by ${title}, so ask for \u201c${EXAMPLES[name].least}\u201d`;
}

/**
 * Where nothing fits: the condition that no model meets by itself, and the best seed of the one that comes nearest.
 * @param {Condition[]} conditions
 * @param {Reader[]} readers
 * @param {Group[]} candidates
 */
function nearestMiss(conditions, readers, candidates) {
  for (const [i, condition] of conditions.entries()) {
    /** @type {Answer["nearest"]} */
    let nearest = null;
    for (const group of candidates) {
      const value = readers[i](group);
      if (!known(value)) continue;
      const nearer = nearest ? (condition.most ? nearest.value - value : value - nearest.value) : Infinity;
      const cheaper = nearer === 0 && (group.mean.macs ?? Infinity) < (nearest?.point.macs ?? Infinity); // as of equal answers
      if (nearer > 0 || cheaper) nearest = { condition, point: group.best, value };
    }
    if (nearest && (condition.most ? nearest.value > condition.value : nearest.value < condition.value)) return nearest;
  }
  return null;
}

/**
 * The value that a condition is about, as text.
 * @param {string} kind
 * @param {number} value
 */
export function sayValue(kind, value) {
  if (kind === "macs") return scaled(value, "MACs");
  if (kind === "params") return scaled(value, "parameters");
  if (kind === "model_bytes") return scaled(value, "B");
  if (kind === "latency_p50_ms") return `${significant(value)} ms`;
  if (kind === "images_per_second") return `${significant(value)} images/s`;
  if (kind === "r2") return `R2 ${fixed(value, 4)}`;
  if (kind === "drop") return `${fixed(value)} points below dense`;
  if (kind === "budget") return `a budget of ${significant(value)} %`;
  if (kind === "share") return `${significant(value)} % of the dense model's MACs`;
  if (kind === "share_params") return `${significant(value)} % of the dense model's parameters`;
  return percent(value);
}
