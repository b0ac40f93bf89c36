// @ts-check
// INT8 versions of models: where they are in the figure, and what is said of them.

import { capital, count, known, plain, scaled, show } from "./format.js";
import { askedOf, measureOf, valueOf } from "./metrics.js";
import { state } from "./state.js";

/** @import { Column, Metric, Page, Point, View } from "./types.js" */

export const SYMBOL = "diamond-cross-open";

/**
 * The value of a point's INT8 version on an axis; null where it has none there. It computes as many multiply-accumulates as the
 * model that it was made from, and has as many parameters. Its time stands on the axis of the float32 times that were measured beside it, and on no other.
 * @param {Metric} metric
 * @param {Point} point
 * @returns {number | null}
 */
export function int8Value(metric, point) {
  if (!point.int8) return null;
  const { numbers } = point.int8;
  if (metric.error) return known(numbers[metric.error.of]) ? metric.error.best - Number(numbers[metric.error.of]) : null;
  if (metric.key === "macs" || metric.key === "params") return metric.of(point);
  if (metric.setting) return metric.setting === point.int8.setting ? (numbers[metric.name] ?? null) : null;
  return numbers[metric.key] ?? null;
}

/**
 * The points whose INT8 version has a place in the figure, and that place.
 * @param {View} view
 * @returns {{ p: Point, x: number, y: number }[]}
 */
export function int8Places(view) {
  const front = new Set(view.front);
  const drawn = view.groups.filter((g) => (state.dominated || front.has(g)) && !(view.cropped && view.outside?.has(g)));
  return drawn
    .flatMap((g) => g.members)
    .map((p) => ({ p, x: Number(int8Value(view.x, p) ?? NaN), y: Number(int8Value(view.y, p) ?? NaN) }))
    .filter(({ x, y }) => known(x) && known(y) && (!view.logx || x > 0) && (!view.logy || y > 0));
}

/**
 * What is said when the pointer is over an INT8 version.
 * @param {Page} page
 * @param {Point} p
 */
export function int8Hover(page, p) {
  const { numbers, setting } = /** @type {NonNullable<Point["int8"]>} */ (p.int8);
  const measure = measureOf(page, p.run);
  const lines = [`<b>INT8 of ${plain(p.method)}, budget ${plain(askedOf(p))}, seed ${p.seed}</b>`];
  for (const [split, key] of [
    ["test", measure.test],
    ["validation", measure.val],
  ])
    if (known(numbers[key]))
      lines.push(`${split} ${measure.title} ${show(measure, numbers[key])} (float32 ${show(measure, valueOf(p, key))})`);
  if (known(numbers.model_bytes)) lines.push(`${scaled(numbers.model_bytes, "B")} on disk`);
  const [fast, slow] = [numbers.latency_p50_ms, numbers.latency_p50_ms_fp32];
  if (known(fast) && known(slow)) {
    const ms = { unit: "ms", decimals: null };
    lines.push(`${show(ms, fast)} (float32 ${show(ms, slow)}; ${plain(setting)})`);
  }
  return lines.join("<br>");
}

/**
 * The sentence under the figure; empty where no INT8 version is in it.
 * @param {View} view
 */
export function int8Sentence(view) {
  const places = int8Places(view);
  if (!places.length) return "";
  return `Diamonds with a cross: ${count(places.length, "INT8 version")} by slimsweep quantize, of single models.`;
}

/**
 * Columns of the table.
 * @param {Page} page
 * @returns {{ column: Column, of: (p: Point) => number | null }[]}
 */
export const int8Columns = (page) =>
  page.int8.columns
    .map((column) => ({
      column: { ...column, name: `int8_${column.name}`, title: capital(column.title) },
      of: (/** @type {Point} */ p) => p.int8?.numbers[column.name] ?? null,
    }))
    .filter(({ of }) => page.points.some((p) => known(of(p))));
