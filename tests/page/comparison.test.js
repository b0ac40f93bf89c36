// Comparisons at equal cost and at equal accuracy whose results are known; tests/test_comparison.py holds them to Python's.
import assert from "node:assert/strict";
import { test } from "node:test";

import { accuracyDifference, compareMethods, costRatio } from "../../slimsweep/report/web/comparison.js";
import { columnMetric } from "../../slimsweep/report/web/metrics.js";
import { page } from "./pages.js";

const curve = [
  [1e6, 80],
  [2e6, 85],
  [4e6, 87],
  [8e6, 88],
];
const near = (found, expected) => assert.ok(Math.abs(found - expected) < 1e-9, `${found} is not ${expected}`);

test("a curve one point higher is ahead by one point, and behind by one the other way round", () => {
  const higher = curve.map(([cost, accuracy]) => [cost, accuracy + 1]);
  near(accuracyDifference(higher, curve).value, 1);
  near(accuracyDifference(curve, higher).value, -1);
});

test("a curve at half of the cost needs half of the cost, and the other twice", () => {
  const cheaper = curve.map(([cost, accuracy]) => [cost / 2, accuracy]);
  near(costRatio(cheaper, curve).value, 0.5);
  near(costRatio(curve, cheaper).value, 2);
  near(costRatio(cheaper, curve).low, 80);
  near(costRatio(cheaper, curve).high, 88);
});

test("nothing is said where there is nothing in common", () => {
  const elsewhere = curve.map(([cost, accuracy]) => [cost * 100, accuracy - 50]);
  assert.equal(accuracyDifference(curve, elsewhere), null);
  assert.equal(costRatio(curve, elsewhere), null);
  assert.equal(accuracyDifference(curve, curve.slice(0, 1)), null);
  assert.equal(costRatio(curve, []), null);
});

test("methods are compared by seed, and one without a common seed is not", () => {
  const small = page((data) => {
    const { points } = data;
    points.method = ["dense", "searched", "searched", "searched", "searched", "searched"];
    for (const name of Object.keys(points)) points[name] = [...points[name], ...points[name].slice(1, 5)];
    points.method.fill("uniform", 6);
    points.test_top1 = points.test_top1.map((top1, i) => (i > 5 ? top1 - (i % 2 ? 1 : 2) : top1));
    data.curves = points.method.map(() => null);
  });
  const macs = columnMetric(small.columns[0]);
  const [ours, theirs] = ["searched", "uniform"].map((method) => ({ run: 0, method }));
  const { difference } = compareMethods(small, ours, theirs, macs);
  near(difference.mean, 1.5); // 2 with seed 0 and 1 with seed 1
  near(difference.se, 0.5);
  assert.equal(difference.seeds, 2);
  const others = { ...small, points: small.points.map((p) => (p.method === "uniform" ? { ...p, seed: 9 } : p)) };
  assert.equal(compareMethods(others, ours, theirs, macs), null);
});
