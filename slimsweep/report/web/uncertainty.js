// @ts-check
// What numbers can tell: differences that errors explain, models that are alike, warnings.
// slimsweep/report/uncertainty.py makes the errors and the warnings; tests/page/apart_cases.json holds both to one rule.

import { byId, el } from "./dom.js";
import { count, fixed, known, show, withSpread } from "./format.js";
import { askedOf, measureOf, valueOf } from "./metrics.js";

/** @import { Group, Metric, Page, Placed, Point, View } from "./types.js" */

const Z = 1.96; // standard errors on either side of a 95 % interval

/**
 * Whether a difference of two numbers is more than their standard errors explain (95 %). Where no error is known, nothing
 * speaks against it.
 * @param {number | null | undefined} difference
 * @param {...(number | null | undefined)} errors
 */
export function toldApart(difference, ...errors) {
  const found = errors.filter(known);
  return known(difference) && (!found.length || Math.abs(difference) > Z * Math.hypot(...found));
}

/**
 * How far two costs may be apart that count as equal: a share of the smallest dense model's; 0 on axes without a dense model's.
 * @param {Page} page
 * @param {Point[]} shown
 * @param {Metric} x
 */
export function toleranceOf(page, shown, x) {
  const dense = shown.map((p) => /** @type {any} */ (p)[`${x.key}_dense`]).filter(known);
  return dense.length ? page.alike * Math.min(...dense) : 0;
}

/**
 * The other models shown that cost the same as a group and whose quality its error does not tell from its own.
 * @param {View} view
 * @param {Placed} group
 * @returns {Placed[]}
 */
export const alikeOf = (view, group) =>
  view.groups.filter(
    (g) =>
      g !== group &&
      view.page.runs[g.run].dataset === view.page.runs[group.run].dataset &&
      Math.abs(g.x - group.x) <= view.tolerance &&
      (g.y === group.y || ((known(g.yse) || known(group.yse)) && !toldApart(g.y - group.y, g.yse, group.yse))),
  );

/** @type {WeakMap<Page, Map<Point, Group>>} */
const groupsOfPages = new WeakMap();

/**
 * A point's group of seeds, shown or not; undefined for one that failed.
 * @param {Page} page
 * @param {Point} point
 */
export function seedsOf(page, point) {
  let groups = groupsOfPages.get(page);
  if (!groups) {
    groups = new Map(page.groups.flatMap((g) => g.members.map((p) => [p, g])));
    groupsOfPages.set(page, groups);
  }
  return groups.get(point);
}

/**
 * The standard error of one point in a column: of several seeds the spread of one, else that of the number of images.
 * @param {Page} page
 * @param {Point} point
 * @param {string} name
 */
export function errorOfOne(page, point, name) {
  const group = seedsOf(page, point);
  const se = group?.se[name];
  return group && known(se) ? se * Math.sqrt(group.members.length) : null;
}

/**
 * Whether a point's measure on test is more than the errors explain above or below the dense model's.
 * @param {View} view
 * @param {Point} point
 */
export function apartFromDense(view, point) {
  const { test } = measureOf(view.page, point.run);
  const dense = view.dense[point.run];
  const [own, other] = [valueOf(point, test), dense.test];
  return known(own) && known(other) && toldApart(own - other, errorOfOne(view.page, point, test), dense.group?.se[test]);
}

/**
 * The same of the mean over the seeds of a group.
 * @param {View} view
 * @param {Group} group
 */
export function meanApartFromDense(view, group) {
  const { test } = measureOf(view.page, group.run);
  const dense = view.dense[group.run];
  const [own, other] = [group.mean[test], dense.test];
  return known(own) && known(other) && toldApart(own - other, group.se[test], dense.group?.se[test]);
}

/**
 * A column's number as text, with its standard error where it has one, in the decimals of its split.
 * @param {Page} page
 * @param {string} name
 * @param {number | null | undefined} value
 * @param {number | null | undefined} [se]
 */
export function columnText(page, name, value, se) {
  const column = page.columns.find((c) => c.name === name) ?? { unit: "", decimals: 2 };
  if (!known(se) || column.decimals === null || !known(value)) return show(column, value);
  return withSpread(value, se, column.decimals) + (column.unit && ` ${column.unit}`);
}

/**
 * A difference in a column, with its unit: "+0.4 points". One that rounds to nothing is "0.0 points", without a sign.
 * @param {Page} page
 * @param {number} run
 * @param {string} name
 * @param {number} value
 */
export function columnDifference(page, run, name, value) {
  const measure = measureOf(page, run);
  const decimals = page.columns.find((c) => c.name === name)?.decimals ?? measure.decimals;
  const text = fixed(value, decimals);
  return `${/[1-9]/.test(text) ? (value > 0 ? "+" : "") + text : fixed(Math.abs(value), decimals)}${measure.points}`;
}

/**
 * Where errors come from, for captions; empty where none is known.
 * @param {View} view
 */
export function errorSentence(view) {
  const several = view.groups.some((g) => g.members.length > 1 && known(g.yse));
  const single = view.groups.some((g) => g.members.length === 1 && known(g.yse));
  const said = [];
  if (several) said.push("over seeds");
  if (single) {
    const split = view.y.key.startsWith("val") ? "val" : "test";
    const numbers = [...new Set(view.groups.map((g) => view.page.runs[g.run].images[split]).filter(known))];
    const images = numbers.length === 1 ? `${numbers[0].toLocaleString("en")} images` : "images of its split";
    said.push(`${several ? "for one seed " : ""}of a share of ${images}`);
  }
  return said.length ? `Bars are standard errors ${said.join(", ")}; a difference within them (95 %) is grey.` : "";
}

/**
 * Which models of the front have others like them; empty where none has.
 * @param {View} view
 */
export function alikeSentence(view) {
  if (!view.tolerance) return "";
  const percent = `${100 * view.page.alike} % of the dense model's ${view.x.key === "macs" ? "MACs" : view.x.label}`;
  const pairs = view.front.filter((g) => alikeOf(view, g).length);
  const alike = pairs.length
    ? ` ${pairs.length === 1 ? `${pairs[0].method} at ${askedOf(pairs[0])} has` : `${count(pairs.length, "model")} of the front have`} others alike: the same cost, and no difference beyond the error.`
    : "";
  return `Costs within ${percent} count as equal.${alike}`;
}

/**
 * What a reader has to know before believing the numbers below.
 * @param {View} view
 */
export function drawCautions(view) {
  const { page } = view;
  const node = byId("cautions");
  const said = view.runs.flatMap((r) =>
    page.runs[r].cautions.map((/** @type {string} */ text) => (page.runs.length > 1 ? `${page.runs[r].name}: ${text}` : text)),
  );
  node.hidden = !said.length;
  node.replaceChildren(...said.map((text) => el("p", {}, text)));
}
