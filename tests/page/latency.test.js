// Latency on the page: which one a number of milliseconds is about, budgets in milliseconds, and their lines.
import assert from "node:assert/strict";
import test from "node:test";

import { limitLines, limitsOn } from "../../slimsweep/report/web/limits.js";
import { budgetOf, costKey, costName, latencyMetric, metricsOf } from "../../slimsweep/report/web/metrics.js";
import { answerQuestion } from "../../slimsweep/report/web/question.js";
import { page, viewOf } from "./pages.js";

// The page's run, which the sweep timed on a CPU and a file of times has on a board. The benchmark is setting 0.
const timed = (/** @type {(data: any) => void} */ more = () => {}) =>
  page((data) => {
    data.timings.push({ name: "latency_ms", title: "latency", unit: "ms", decimals: null, axis: "x", more: false });
    data.settings = ["slimsweep bench: cpu, batch 1", "the sweep's own timing: EPYC, batch 1", "a board, batch 1"];
    for (const [setting, factor] of [
      [1, 1],
      [2, 10],
    ]) {
      const times = [9, 5, 5, 3, 3].map((ms) => ms * factor);
      times.forEach((ms, point) => data.bench.push([point, setting, [null, null, ms]]));
      data.groups.mean[`latency_ms:${setting}`] = [9 * factor, 5 * factor, 3 * factor];
      data.groups.se[`latency_ms:${setting}`] = [null, 0, 0];
    }
    data.limits = [
      [0, 1, 6, "6 ms"],
      [0, 1, 3.5, "40 % of dense"],
    ];
    more(data);
  });

test("every setting is an axis, and its label says who measured", () => {
  assert.deepEqual(
    metricsOf(timed())
      .x.filter((m) => m.unit === "ms")
      .map((m) => m.label),
    [
      "latency p50 (slimsweep bench: cpu, batch 1)",
      "latency (the sweep's own timing: EPYC, batch 1)",
      "latency (a board, batch 1)",
    ],
  );
});

test("milliseconds are about the latency on the axis, else the sweep's, else the benchmark's", () => {
  const of = timed();
  assert.equal(latencyMetric(viewOf(of)).key, "latency_ms:1");
  assert.equal(latencyMetric(viewOf(of, "latency_ms:2")).key, "latency_ms:2");
  assert.equal(latencyMetric(viewOf(of, "latency_p50_ms:0")).key, "latency_p50_ms:0");
  assert.equal(latencyMetric(viewOf(page())).key, "latency_p50_ms:0");
  const never = page((data) => (data.bench = []));
  assert.equal(latencyMetric(viewOf(never)), undefined);
});

test("a question about milliseconds says which latency it took, and that there are others", () => {
  const of = timed();
  const asked = (/** @type {string} */ x) => answerQuestion(viewOf(of, x), "under 5.5 ms");
  const first = asked("macs");
  assert.deepEqual(
    first.groups.map((g) => g.budget),
    [0.5, 0.25],
  );
  assert.equal(first.conditions[0].setting, "the sweep's own timing: EPYC, batch 1");
  assert.match(first.conditions[0].note, /^means latency \(the sweep's own timing: EPYC, batch 1\), one of 3 latencies here/);
  const onBoard = asked("latency_ms:2");
  assert.equal(onBoard.answer, null);
  assert.equal(onBoard.nearest.value, 30);
  assert.equal(onBoard.conditions[0].note, undefined);
  assert.equal(answerQuestion(viewOf(page()), "under 5 ms").conditions[0].note, undefined); // there is no other
});

test("budgets in milliseconds are lines on the axis of their setting alone", () => {
  const of = timed();
  assert.deepEqual(
    [...limitsOn(viewOf(of, "latency_ms:1"))],
    [
      [6, "6 ms"],
      [3.5, "40 % of dense"],
    ],
  );
  assert.equal(limitsOn(viewOf(of, "latency_ms:2")).size, 0);
  assert.equal(limitsOn(viewOf(of, "latency_p50_ms:0")).size, 0);
  assert.equal(limitsOn(viewOf(of)).size, 0);
  assert.equal(limitsOn(viewOf(page())).size, 0);
  const many = timed((data) => (data.limits = Array.from({ length: 9 }, (_, i) => [0, 1, i + 1, `${i + 1} ms`])));
  assert.equal(limitsOn(viewOf(many, "latency_ms:1")).size, 0);
});

test("a line stands at its milliseconds, also on a logarithmic axis", () => {
  const view = viewOf(timed(), "latency_ms:1");
  const lines = (/** @type {boolean} */ logx) => limitLines({ ...view, logx }, { size: 1, unit: "ms" }, { muted: "grey" });
  const [at, logAt] = [lines(false), lines(true)];
  assert.deepEqual(
    at.shapes.map((s) => [s.x0, s.x1]),
    [
      [6, 6],
      [3.5, 3.5],
    ],
  );
  assert.deepEqual(
    at.annotations.map((a) => [a.x, a.text]),
    [
      [6, "budget 6 ms"],
      [3.5, "budget 40 % of dense"],
    ],
  );
  assert.deepEqual(logAt.shapes, at.shapes);
  assert.equal(logAt.annotations[0].x, Math.log10(6));
});

test("a budget in milliseconds is said in them, or as a share of the latency", () => {
  assert.equal(budgetOf({ budget: 0.4321, unit: "ms", budget_ms: 8 }), "8 ms");
  assert.equal(budgetOf({ budget: 0.4, unit: "ms", budget_ms: null }), "40 % of latency");
  assert.equal(budgetOf({ budget: 0.4, unit: "macs", budget_ms: null }), "40 %");
  assert.equal(costName("ms"), "latency");
});

test("budgets in milliseconds make the sweep's latency the default cost", () => {
  const { x } = metricsOf(timed());
  assert.equal(costKey(x, "ms"), "latency_ms:1");
  assert.equal(costKey(x, "params"), "params");
  assert.equal(costKey(metricsOf(page()).x, "ms"), "macs"); // all was timed on a busy machine
});
