// INT8 versions stand where their model stands, with numbers of their own.
import assert from "node:assert/strict";
import { test } from "node:test";

import { int8Columns, int8Hover, int8Places, int8Value } from "../../slimsweep/report/web/int8.js";
import { metricsOf } from "../../slimsweep/report/web/metrics.js";
import { readPage } from "../../slimsweep/report/web/unpack.js";
import { packed } from "./pages.js";

const described = (name, title, unit) => ({ name, title, unit, decimals: 2, axis: null, more: false });

const withInt8 = () =>
  readPage({
    ...packed(),
    int8: {
      columns: [
        described("model_bytes", "size on disk, INT8", "B"),
        described("val_top1", "validation top-1, INT8", "%"),
        described("test_top1", "test top-1, INT8", "%"),
        described("latency_p50_ms", "latency p50, INT8", "ms"),
      ],
      models: [{ point: 1, file: "exports/s50-0-int8.onnx", setting: "cpu, batch 64", numbers: [9e4, 95.1, 93.5, 2.5] }],
    },
  });

function viewOf(page) {
  const { x, y } = metricsOf(page);
  const pick = (list, key) => list.find((m) => m.key === key);
  return {
    page,
    x: pick(x, "macs"),
    y: pick(y, "test_top1"),
    groups: page.groups,
    front: page.groups,
    logx: false,
    logy: false,
  };
}

test("an INT8 version has the MACs of its model and its own accuracy", () => {
  const page = withInt8();
  const places = int8Places(viewOf(page));
  assert.deepEqual(
    places.map(({ p, x, y }) => [p.point, x, y]),
    [["s50-0", 2e6, 93.5]],
  );
});

test("an INT8 version has a time only on the axis of the float32 times beside it", () => {
  const page = withInt8();
  page.points[1].bench = { 0: [5, 200], 1: [4, null] };
  const timed = metricsOf(page).x.filter((m) => m.name === "latency_p50_ms");
  assert.deepEqual(
    timed.map((metric) => [metric.setting, int8Value(metric, page.points[1])]),
    [
      ["cpu, batch 1", null],
      ["cpu, batch 64", 2.5],
    ],
  );
});

test("both accuracies are said, and what is not known is not", () => {
  const page = withInt8();
  const said = int8Hover(page, page.points[1]);
  assert.match(said, /INT8 of searched, budget 50 %, seed 0/);
  assert.match(said, /test top-1 93.50 % \(float32 94.00 %\)/);
  assert.doesNotMatch(said, / ms/);
  assert.deepEqual(
    int8Columns(page).map(({ column }) => column.title),
    ["Size on disk, INT8", "Validation top-1, INT8", "Test top-1, INT8", "Latency p50, INT8"],
  );
});

test("a page without INT8 versions has none", () => {
  const page = readPage(packed());
  assert.deepEqual(int8Columns(page), []);
  assert.deepEqual(int8Places(viewOf(page)), []);
});
