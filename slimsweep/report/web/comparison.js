// Methods compared at equal cost and at equal accuracy: what they are compared with and in which cost is the reader's choice,
// so the page computes it itself. slimsweep/report/comparison.py computes the same, and says where the formulas come from;
// tests/test_comparison.py holds both to each other.

import { known } from "./format.js";
import { paretoFront } from "./front.js";
import { measureOf, valueOf } from "./metrics.js";

/** @import { Metric, Page, Point } from "./types.js" */

/**
 * A measure of two curves: its value, and the range that both cover, over which it is the mean.
 * @typedef {{ value: number, low: number, high: number }} Comparison
 */

/**
 * Mean over seeds with its standard error (null for one seed); all null where no seed has a common range.
 * @typedef {{ mean: number | null, se: number | null, seeds: number, low: number | null, high: number | null }} OverSeeds
 */

/** @typedef {[cost: number, accuracy: number]} Pair */

/**
 * A curve through points: `at` ascending.
 * @typedef {{ at: number[], values: number[] }} Curve
 */

const SMALLEST_RANGE = 1e-6; // a common range that is narrower counts as none

/** @param {number[]} values */
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/**
 * The mean difference of accuracy, or of any other quality, at equal cost; the range is one of costs.
 * @param {Pair[]} ours
 * @param {Pair[]} theirs
 * @returns {Comparison | null} null where the two share no range of costs
 */
export function accuracyDifference(ours, theirs) {
  const gap = meanGap(byCost(ours), byCost(theirs));
  return gap && { value: gap.value, low: Math.exp(gap.low), high: Math.exp(gap.high) };
}

/**
 * The mean ratio of costs at equal accuracy, ours to theirs; the range is one of accuracies.
 * @param {Pair[]} ours
 * @param {Pair[]} theirs
 * @returns {Comparison | null} null where the two fronts share no range of accuracies
 */
export function costRatio(ours, theirs) {
  const gap = meanGap(byAccuracy(ours), byAccuracy(theirs));
  return gap && { ...gap, value: Math.exp(gap.value) };
}

/**
 * Two methods, of the same run or of two, compared by their measure on test and paired by seed.
 * @param {Page} page
 * @param {{ run: number, method: string }} ours
 * @param {{ run: number, method: string }} theirs
 * @param {Metric} cost less is better
 * @returns {{ seeds: number, difference: OverSeeds, ratio: OverSeeds } | null} with the number of seeds that both have; null
 *   where they have none in common
 */
export function compareMethods(page, ours, theirs, cost) {
  const { test } = measureOf(page, ours.run);
  const both = [ours, theirs].map(({ run, method }) =>
    ofOneKind(
      page.points.filter(
        (p) => p.run === run && p.method === method && p.status === "ok" && (cost.of(p) ?? 0) > 0 && known(valueOf(p, test)),
      ),
      cost,
    ),
  );
  const shared = sharedSeeds(both);
  if (!shared.length) return null;
  const seeds = seedsToCompare(both, shared);
  const [a, b] = both.map((points) => curves(points, seeds, cost, test));
  return {
    seeds: shared.length,
    difference: overSeeds(a.map((curve, i) => accuracyDifference(curve, b[i]))),
    ratio: overSeeds(
      a.map((curve, i) => costRatio(curve, b[i])),
      true,
    ),
  };
}

/**
 * What a point was asked for.
 * @param {Point} point
 */
const askedKey = ({ unit, budget, shares }) => `${unit} ${budget} ${shares ?? ""}`;

/**
 * The points of one method that make one curve: those of budgets where there are any, and of these the budgets in the unit of
 * the cost where there are at least two.
 * @param {Point[]} points
 * @param {Metric} cost
 */
function ofOneKind(points, cost) {
  const ofBudgets = points.filter((p) => !p.shares);
  const rows = ofBudgets.length ? ofBudgets : points;
  const inUnit = rows.filter((p) => p.unit === cost.key);
  return new Set(inUnit.map(askedKey)).size > 1 ? inUnit : rows;
}

/**
 * @param {Point[][]} both
 * @returns {number[]} the seeds that two methods share, ascending
 */
function sharedSeeds(both) {
  const ofMethod = both.map((points) => new Set(points.map((p) => p.seed)));
  const seeds = [...ofMethod[0]].filter((seed) => seed !== null && ofMethod[1].has(seed)).map(Number);
  return seeds.sort((a, b) => a - b);
}

/**
 * Of these seeds those with which most points take part, as `seeds_to_compare` of pareto.py chooses them for two curves.
 * @param {Point[][]} both
 * @param {number[]} seeds
 */
function seedsToCompare(both, seeds) {
  const asked = new Map(seeds.map((seed) => [seed, both.map(() => /** @type {Set<string>} */ (new Set()))]));
  both.forEach((points, method) => points.forEach((p) => asked.get(Number(p.seed))?.[method].add(askedKey(p))));
  const of = (/** @type {number} */ seed) => /** @type {Set<string>[]} */ (asked.get(seed));
  const has = (/** @type {number} */ seed, /** @type {number} */ one) =>
    of(one).every((keys, method) => [...keys].every((key) => of(seed)[method].has(key)));
  // One seed of each kind: most have the same, and there may be hundreds of them.
  const kinds = new Map(seeds.map((seed) => [JSON.stringify(of(seed).map((keys) => [...keys].sort())), seed])).values();
  const candidates = [seeds, ...[...kinds].map((one) => seeds.filter((seed) => has(seed, one)))];
  let most = 0;
  let best = seeds;
  for (const some of candidates.filter((candidate) => candidate.length > 1)) {
    const [a, b] = of(some[0]).map((keys, i) => [...keys].filter((key) => some.every((seed) => of(seed)[i].has(key))).length);
    const points = a > 1 && b > 1 ? some.length * (a + b) : 0;
    if (points > most) [most, best] = [points, some];
  }
  if (most) return best;
  // No choice of several seeds leaves each method two points: one alone, without an error, rather than nothing.
  for (const seed of seeds) {
    const [a, b] = of(seed).map((keys) => keys.size);
    if (a > 1 && b > 1 && a + b > most) [most, best] = [a + b, [seed]];
  }
  return best;
}

/**
 * Per seed, cost and quality of what was asked for at all of the seeds.
 * @param {Point[]} points
 * @param {number[]} seeds
 * @param {Metric} cost
 * @param {string} test the column of the quality
 * @returns {Pair[][]}
 */
function curves(points, seeds, cost, test) {
  const groups = seeds.map((seed) => points.filter((p) => p.seed === seed));
  const asked = groups.map((group) => new Set(group.map(askedKey)));
  return groups.map((group) =>
    group
      .filter((p) => asked.every((one) => one.has(askedKey(p))))
      .map((p) => [/** @type {number} */ (cost.of(p)), /** @type {number} */ (valueOf(p, test))]),
  );
}

/**
 * @param {(Comparison | null)[]} ofSeeds
 * @param {boolean} [ratios] averaged as logarithms
 * @returns {OverSeeds}
 */
function overSeeds(ofSeeds, ratios = false) {
  const found = ofSeeds.filter((one) => one !== null);
  const seeds = found.length;
  if (!seeds) return { mean: null, se: null, seeds, low: null, high: null };
  const values = found.map((one) => (ratios ? Math.log(one.value) : one.value));
  const middle = mean(values);
  const se = seeds > 1 ? Math.sqrt(values.reduce((sum, v) => sum + (v - middle) ** 2, 0) / (seeds - 1) / seeds) : null;
  const [low, high] = [mean(found.map((one) => one.low)), mean(found.map((one) => one.high))];
  if (!ratios) return { mean: middle, se, seeds, low, high };
  const ratio = Math.exp(middle);
  return { mean: ratio, se: se === null ? null : se * ratio, seeds, low, high };
}

/**
 * The mean of one curve minus the other over the range that both cover.
 * @param {Curve} ours
 * @param {Curve} theirs
 * @returns {Comparison | null}
 */
function meanGap(ours, theirs) {
  if (Math.min(ours.at.length, theirs.at.length) < 2) return null;
  const low = Math.max(ours.at[0], theirs.at[0]);
  const high = Math.min(ours.at[ours.at.length - 1], theirs.at[theirs.at.length - 1]);
  if (high - low < SMALLEST_RANGE) return null;
  return { value: (integral(ours, low, high) - integral(theirs, low, high)) / (high - low), low, high };
}

/**
 * The logarithms of the costs, ascending, and the mean accuracy at each.
 * @param {Pair[]} points
 * @returns {Curve}
 */
function byCost(points) {
  const costs = [...new Set(points.map(([cost]) => cost))].sort((a, b) => a - b);
  const accuracy = (/** @type {number} */ cost) => mean(points.filter(([c]) => c === cost).map(([, a]) => a));
  return { at: costs.map(Math.log), values: costs.map(accuracy) };
}

/**
 * The accuracies on the front of points, and the logarithm of the cost at each.
 * @param {Pair[]} points
 * @returns {Curve}
 */
function byAccuracy(points) {
  const front = paretoFront(
    points.map(([x, y]) => ({ x, y })),
    false,
    true,
  ).filter((item, i, all) => i === 0 || item.y !== all[i - 1].y); // equal points once
  return { at: front.map(({ y }) => y), values: front.map(({ x }) => Math.log(x)) };
}

/**
 * The integral of the monotone piecewise cubic through a curve's points, from low to high, both inside the curve.
 * @param {Curve} curve
 * @param {number} low
 * @param {number} high
 */
function integral({ at, values }, low, high) {
  const slopes = slopesOf(at, values);
  let total = 0;
  for (let i = 0; i + 1 < at.length; i++) {
    const [from, to] = [Math.max(low, at[i]), Math.min(high, at[i + 1])];
    if (from >= to) continue;
    const width = at[i + 1] - at[i];
    const value = (/** @type {number} */ place) => {
      const t = (place - at[i]) / width;
      const [s, rise] = [1 - t, t * t * (3 - 2 * t)];
      return values[i] * (1 - rise) + values[i + 1] * rise + width * t * s * (slopes[i] * s - slopes[i + 1] * t);
    };
    total += ((to - from) / 6) * (value(from) + 4 * value((from + to) / 2) + value(to)); // Simpson's rule: exact for cubics
  }
  return total;
}

/**
 * The slopes of the cubic at the points, as PCHIP (Fritsch and Butland, 1984) has them in SciPy.
 * @param {number[]} at
 * @param {number[]} values
 */
function slopesOf(at, values) {
  const widths = at.slice(1).map((x, i) => x - at[i]);
  const rises = widths.map((width, i) => (values[i + 1] - values[i]) / width);
  if (rises.length === 1) return [rises[0], rises[0]];
  const inner = rises.slice(1).map((rise, i) => {
    if (!(rises[i] * rise > 0)) return 0; // a turn, or a flat piece
    const [one, two] = [2 * widths[i + 1] + widths[i], widths[i + 1] + 2 * widths[i]];
    return (one + two) / (one / rises[i] + two / rise);
  });
  const last = rises.length - 1;
  return [
    endSlope(widths[0], widths[1], rises[0], rises[1]),
    ...inner,
    endSlope(widths[last], widths[last - 1], rises[last], rises[last - 1]),
  ];
}

/**
 * The slope at an end, by three points, limited so that the curve stays monotone.
 * @param {number} width of the piece at the end
 * @param {number} nextWidth
 * @param {number} rise its mean slope
 * @param {number} nextRise
 */
function endSlope(width, nextWidth, rise, nextRise) {
  const slope = ((2 * width + nextWidth) * rise - width * nextRise) / (width + nextWidth);
  if (Math.sign(slope) !== Math.sign(rise)) return 0;
  return Math.sign(rise) !== Math.sign(nextRise) && Math.abs(slope) > 3 * Math.abs(rise) ? 3 * rise : slope;
}
