import assert from "node:assert/strict";
import { test } from "node:test";

import {
  askedOf,
  budgetOf,
  defaultCost,
  defaultQuality,
  denseOf,
  groupOf,
  judged,
  measureOf,
  metricOr,
  metricsOf,
  neighbourOf,
  placedGroups,
  placedMembers,
  sharesOf,
  testMeasure,
  trainedOf,
} from "../../slimsweep/report/web/metrics.js";
import { judgedByR2, page } from "./pages.js";

const viewOf = (of, x = "macs", y = "test_top1") => {
  const metrics = metricsOf(of);
  const view = { page: of, metrics, x: metricOr(metrics.x, x, ""), y: metricOr(metrics.y, y, "") };
  return { ...view, groups: placedGroups(of, new Set(of.points), view.x, view.y) };
};

test("points and groups have what the columns say", () => {
  const { points, groups } = page();
  assert.equal(points[2].point, "s50-1");
  assert.deepEqual(points[2].layers.units, [8]);
  assert.equal(points[0].layers, null);
  assert.deepEqual(points[1].bench, { 0: [4, 250] });
  assert.deepEqual(groups[1].members, [points[1], points[2]]);
  assert.equal(groups[2].best, points[4]);
  assert.equal(groups[1].mean.test_top1, 94.5);
  assert.equal(groups[1].se.test_top1, 0.5);
});

test("metrics are what some point has, with a title, and timings per setting", () => {
  const { x, y } = metricsOf(page());
  assert.deepEqual(
    x.map((m) => m.key),
    ["macs", "params", "latency_p50_ms:0", "images_per_second:0"], // no size on disk, nothing in the second setting
  );
  assert.equal(x[2].label, "latency p50 (cpu, batch 1)");
  assert.deepEqual(
    y.map((m) => m.label),
    ["validation top-1", "test top-1"],
  );
  assert.equal(x[2].of(page().points[1]), 4);
  assert.equal(x[2].of(page().points[3]), null);
});

test("a point that was not timed has no place where latency is an axis", () => {
  const view = viewOf(page(), "latency_p50_ms:0");
  const [group] = view.groups.filter((g) => g.members.length > 1);
  assert.deepEqual(placedMembers([group], view.x, view.y), group.members);
  group.members[1].bench = {};
  assert.deepEqual(placedMembers([group], view.x, view.y), [group.members[0]]);
  assert.deepEqual(placedMembers([group], viewOf(page()).x, view.y), group.members);
});

test("a new column becomes an axis without the page knowing it", () => {
  const more = page((data) => {
    data.columns.push({ name: "energy", title: "energy", unit: "J", decimals: 1, axis: "x", more: false });
    data.points.energy = [5, 4, 4, 3, 3, null];
  });
  const metric = metricsOf(more).x.at(-3);
  assert.equal(metric.label, "energy");
  assert.equal(metric.of(more.points[1]), 4);
});

test("the chosen metric, else the default, else the first", () => {
  const { x } = metricsOf(page());
  assert.equal(metricOr(x, "params", "macs").key, "params");
  assert.equal(metricOr(x, "gone", "macs").key, "macs");
  assert.equal(metricOr(x, "", "gone").key, "macs");
  assert.equal(metricOr([], "", "macs"), undefined);
});

test("budgets of parameters make parameters the default cost, whatever unit dense has", () => {
  const units = (...all) => defaultCost(page((data) => (data.points.unit = all)).points);
  assert.equal(units("macs", "params", "params", "params", "params", "params"), "params");
  assert.equal(units("params", "params", "macs", "params", "params", "params"), "macs");
  assert.equal(defaultCost([]), "macs");
  assert.equal(defaultCost(page().points.slice(0, 1)), "macs");
});

test("a budget says what it is of where that is not the MACs", () => {
  assert.equal(budgetOf({ budget: 0.6, unit: "params" }), "60 % of params");
  assert.equal(budgetOf({ budget: 0.6, unit: "macs" }), "60 %");
  assert.equal(budgetOf({ budget: null, unit: "params" }), "–");
  const shares = '{"attention":0.7,"mlp":0.6}';
  assert.equal(sharesOf({ shares }), "attention 0.7, mlp 0.6");
  assert.equal(sharesOf({ shares: null }), "");
  assert.equal(askedOf({ budget: 0.5, unit: "macs", shares }), "50 % (attention 0.7, mlp 0.6)");
  assert.equal(
    askedOf({ budget: 0.5, unit: "ms", budget_ms: 8, timed_in: "cpu, 1 thread", shares: null }),
    "8 ms (cpu, 1 thread)",
  );
  assert.equal(askedOf({ budget: 0.5, unit: "params", shares: "" }), "50 % of params");
});

test("groups are placed at Python's means, and only where both numbers are known and the points are shown", () => {
  const of = page();
  const { groups } = viewOf(of);
  assert.deepEqual(
    groups.map((g) => [g.x, g.y, g.yse]),
    [
      [4e6, 95, null],
      [2e6, 94.5, 0.5],
      [1e6, 88.5, 0.5],
    ],
  );
  assert.equal(viewOf(of, "latency_p50_ms:0").groups.length, 2);
  const metrics = metricsOf(of);
  const shown = new Set(of.points.filter((p) => p.method === "dense"));
  assert.deepEqual(
    placedGroups(of, shown, metrics.x[0], metrics.y[0]).map((g) => g.method),
    ["dense"],
  );
});

test("choices are by validation, by test only without it", () => {
  const measure = measureOf(page(), 0);
  assert.equal(judged(measure, { val_top1: 90, test_top1: 95 }), 90);
  assert.equal(judged(measure, { val_top1: null, test_top1: 95 }), 95);
  assert.equal(judged(measure, {}), -Infinity);
});

test("changes are against the retrained dense model, before that against the untouched one", () => {
  const dense = denseOf(page(), 0);
  assert.deepEqual([dense.test, dense.val, dense.what], [95, 96, "retrained dense"]);
  const none = (untouched) =>
    denseOf(
      page((data) => {
        data.groups.method[0] = "uniform";
        data.runs[0].untouched = untouched;
      }),
      0,
    );
  assert.deepEqual([none(97).test, none(97).what, none(97).group], [97, "untouched dense", null]);
  assert.deepEqual([none(null).test, none(null).what], [null, "dense"]);
});

test("neighbours are one step along the front, of seeds too, and in the direction of the cost", () => {
  const of = page();
  const view = viewOf(of);
  assert.equal(groupOf(view, of.points[2]).budget, 0.5);
  assert.equal(groupOf(view, of.points[5]), null); // it failed
  assert.equal(neighbourOf(view, of.points[2], -1).budget, 0.25);
  assert.equal(neighbourOf(view, of.points[2], 1).method, "dense");
  assert.equal(neighbourOf(view, of.points[3], -1), null);
  assert.equal(neighbourOf(view, of.points[5], 1), null);
  const fast = viewOf(of, "images_per_second:0"); // more is better: a step to what costs less is one to more images
  assert.equal(neighbourOf(fast, of.points[0], -1).budget, 0.5);
});

test("models before retraining are beside the front, and the dense one among them is what changes are measured against", () => {
  const before = (data) => {
    data.untrained = ["searched, before retraining", "dense, before retraining"];
    data.points.method[1] = data.points.method[2] = data.groups.method[1] = "searched, before retraining";
  };
  const mixed = page(before);
  assert.deepEqual(
    trainedOf(mixed, mixed.groups).map((g) => g.budget),
    [1, 0.25],
  );
  const view = viewOf(mixed);
  assert.equal(neighbourOf(view, mixed.points[4], 1).method, "dense"); // not the untrained one in between
  assert.equal(neighbourOf(view, mixed.points[1], 1), null);
  assert.equal(denseOf(mixed, 0).what, "retrained dense");

  const only = page((data) => {
    before(data);
    data.points.method = data.points.method.map((m) => `${m.split(",")[0]}, before retraining`);
    data.groups.method = data.groups.method.map((m) => `${m.split(",")[0]}, before retraining`);
  });
  assert.equal(trainedOf(only, only.groups).length, 3);
  assert.deepEqual([denseOf(only, 0).what, denseOf(only, 0).val], ["untouched dense", 96]);
  assert.equal(defaultCost(only.points), "macs");
});

test("models without a head are shown by R2, by its distance from 1, and by k-NN", () => {
  const of = page(judgedByR2);
  const { y } = metricsOf(of);
  assert.deepEqual(
    y.map((m) => m.label),
    [
      "R2 of the features, validation",
      "R2 of the features, test",
      "k-NN top-1, validation",
      "1 \u2212 R2 of the features, test",
    ],
  );
  assert.equal(defaultQuality(of, of.points), "test_r2");
  assert.equal(defaultQuality(page(), []), "test_top1");
  assert.equal(testMeasure(of, y[1]).title, "R2");
  assert.equal(testMeasure(of, y[0]), null);
  const view = viewOf(of, "macs", "test_r2");
  assert.deepEqual(
    view.groups.map((g) => g.y),
    [0.95, 0.945, 0.885],
  );
  const dense = denseOf(of, 0);
  assert.deepEqual([dense.test, dense.val, dense.what], [0.95, 0.96, "retrained dense"]);
});

test("the distance of R2 from 1 is an axis of its own, of which less is better", () => {
  const of = page(judgedByR2);
  const view = viewOf(of, "macs", "test_r2_error");
  assert.equal(view.y.more, false);
  assert.ok(Math.abs(view.y.of(of.points[1]) - 0.06) < 1e-12);
  assert.equal(view.y.of(of.points[5]), null);
  assert.ok(Math.abs(view.groups[2].y - 0.115) < 1e-12);
  // The front is the same as by R2: less error at more cost.
  assert.equal(neighbourOf(view, of.points[1], -1).budget, 0.25);
  assert.equal(neighbourOf(view, of.points[1], 1).method, "dense");
});

test("before the dense model is done, models without a head are compared with what it is by definition", () => {
  const dense = denseOf(
    page((data) => {
      judgedByR2(data);
      data.groups.method[0] = "uniform";
    }),
    0,
  );
  assert.deepEqual([dense.test, dense.val, dense.what, dense.group], [1, 1, "untouched dense", null]);
});
