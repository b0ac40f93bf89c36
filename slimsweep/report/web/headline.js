// The numbers above the figure: the dense model, the smallest model close to it, the knee, the most accurate model.
// Models are chosen on validation, so validation is the large number and the test split's the small one.

import { actions } from "./actions.js";
import { byId, el } from "./dom.js";
import { capital, known, share, show, showSpread } from "./format.js";
import { askedOf, costName, isDense, isTrained, judged, measureOf, placedGroups, trainedOf, valueOf } from "./metrics.js";
import { columnDifference, columnText, toldApart } from "./uncertainty.js";

/** @import { Measure, Page, Point, View } from "./types.js" */

/**
 * What is compared for "most accurate": a group of seeds, or the dense model as it came.
 * @typedef {{ name: string, cost: number, mean: Record<string, number | null>, se: Record<string, number | null>,
 *   point: Point | null }} Candidate
 */

/**
 * A tile: what it is, its number, and lines below it.
 * @param {string} term
 * @param {string} value
 * @param {string[]} notes
 * @param {Point | null} [point] opened by a click
 */
function tile(term, value, notes, point) {
  const inner = [el("dt", {}, term), el("dd", {}, value), ...notes.filter(Boolean).map((note) => el("small", {}, note))];
  return point ? el("button", { type: "button", onclick: () => actions.choose(point) }, ...inner) : el("div", {}, ...inner);
}

/**
 * A mean on validation as the large number and on test as a line below; on test alone where validation is not known.
 * @param {Page} page
 * @param {Measure} measure
 * @param {Pick<Candidate, "mean" | "se">} numbers
 * @returns {[string, string]}
 */
function valueAndTest(page, { val, test, title }, { mean, se }) {
  const onTest = columnText(page, test, valueOf(mean, test), valueOf(se, test));
  if (!known(valueOf(mean, val))) return [onTest, `test ${title}`];
  return [columnText(page, val, valueOf(mean, val), valueOf(se, val)), `validation ${title}; test ${onTest}`];
}

/**
 * @param {View["y"]} y
 * @param {NonNullable<View["knee"]>} knee
 */
const ofKnee = (y, { y: value, yse }) =>
  known(yse) && y.decimals !== null ? showSpread({ unit: y.unit, decimals: y.decimals }, value, yse) : show(y, value);

/** @param {View} view */
export function drawHeadline(view) {
  const { page } = view;
  const node = byId("headline");
  node.hidden = page.runs.length > 1 || !view.groups.length;
  if (node.hidden) return undefined;
  const run = 0;
  const measure = measureOf(page, run);
  const { val, test } = measure;
  const dense = view.dense[run];
  // Sizes are in the cost that is the axis, or in MACs where something else is, such as a time.
  const isCost = view.shown.some((p) => known(p[`${view.x.key}_dense`]));
  const bySize = isCost ? view.x : (view.metrics.x.find((m) => m.key === "macs") ?? view.x);
  const sizeOf = (p) => show(bySize, p[bySize.key]);
  const shareOf = (p) => `${share(p[bySize.key], p[`${bySize.key}_dense`])} of ${costName(bySize.key)}`;
  const byTest = view.metrics.y.find((m) => m.key === test) ?? view.y;
  const groups = trainedOf(page, placedGroups(page, new Set(view.shown), bySize, byTest));
  if (!groups.length) return node.replaceChildren();

  /** @type {Candidate[]} */
  const candidates = groups.map((g) => ({
    name: isDense(g) ? "dense, retrained" : `${g.method} at ${askedOf(g)}`,
    cost: g.x,
    mean: g.mean,
    se: g.se,
    point: g.best,
  }));
  const { untouched, untouched_val: untouchedVal } = page.runs[run];
  const asItCame = { mean: { [val]: untouchedVal, [test]: untouched }, se: {} };
  // The dense model as it came is no point of the sweep, and may still be the best there is.
  if (known(untouchedVal) && known(untouched) && measure.untouched === null)
    candidates.push({ name: "dense, untouched", cost: groups[0].best[`${bySize.key}_dense`], ...asItCame, point: null });

  const stats = [];
  if (dense.group) {
    const { best } = dense.group;
    const term = isTrained(page, best) ? "Dense, retrained" : "Dense, untouched";
    const [value, note] = valueAndTest(page, measure, dense.group);
    stats.push(tile(term, value, [note, `at ${sizeOf(best)}`], best));
  } else if (known(dense.test)) {
    stats.push(tile("Dense, untouched", ...split(valueAndTest(page, measure, asItCame))));
  }
  const near = (group) => !isDense(group) && judged(measure, group.mean) >= dense.val - measure.point;
  const close = known(dense.val) ? groups.filter(near) : [];
  if (close.length) {
    const least = close.reduce((a, b) => (b.x < a.x ? b : a));
    const gap = (name, from) => columnDifference(page, run, name, valueOf(least.mean, name) - from);
    const beyond = known(dense.test) && least.y - dense.test < -measure.point;
    const within = measure.points ? "1 point" : String(measure.point);
    stats.push(
      tile(
        `Smallest within ${within} of dense on validation`,
        shareOf(least.best),
        [
          `${least.method} at ${askedOf(least)}`,
          known(valueOf(least.mean, val))
            ? `validation ${gap(val, dense.val)}; test ${known(dense.test) ? gap(test, dense.test) : ""}`
            : "",
          beyond ? `on test it is more than ${within} below dense` : "",
        ],
        least.best,
      ),
    );
  }
  if (view.knee)
    stats.push(
      tile(
        "Knee of the front",
        shareOf(view.knee.best),
        [`${view.y.label} ${ofKnee(view.y, view.knee)}`, "beyond it, each gain costs more"],
        view.knee.best,
      ),
    );
  // Of equals the cheapest.
  const top = candidates.reduce((a, b) => {
    const more = judged(measure, b.mean) - judged(measure, a.mean);
    return more > 0 || (more === 0 && b.cost < a.cost) ? b : a;
  });
  stats.push(
    tile(
      `${capital(measure.highest)}${known(valueOf(top.mean, val)) ? ", chosen on validation" : ""}`,
      valueAndTest(page, measure, top)[0],
      [valueAndTest(page, measure, top)[1], top.name, leadOf(page, measure, run, top, candidates)],
      top.point,
    ),
  );
  return node.replaceChildren(...stats);
}

/** @param {[string, string]} pair @returns {[string, string[]]} */
const split = ([value, note]) => [value, [note]];

/**
 * How sure it is that a model is the best one: by how many images it leads, and how many others its error does not exclude.
 * @param {Page} page
 * @param {Measure} measure
 * @param {number} run
 * @param {Candidate} top
 * @param {Candidate[]} candidates
 */
function leadOf(page, measure, run, top, candidates) {
  const { val } = measure;
  const own = valueOf(top.mean, val);
  const rest = candidates.filter((c) => c !== top && known(valueOf(c.mean, val)));
  if (!known(own) || !rest.length) return "";
  const gap = (/** @type {Candidate} */ c) => own - /** @type {number} */ (valueOf(c.mean, val));
  const images = page.runs[run].images.val;
  const error = valueOf(top.se, val);
  const like = known(error) ? rest.filter((c) => !toldApart(gap(c), error, valueOf(c.se, val))).length : 0;
  const said = [];
  if (measure.unit === "%" && known(images)) {
    const lead = Math.round((Math.min(...rest.map(gap)) * images) / 100);
    const number = images.toLocaleString("en");
    if (lead === 0) said.push(`level with another on ${number} images`);
    else if (lead <= page.handful) said.push(`ahead by ${lead === 1 ? "one image" : `${lead} images`} of ${number}`);
  }
  if (like) said.push(like === 1 ? "1 other is within its error" : `${like} others are within its error`);
  return said.join("; ");
}
