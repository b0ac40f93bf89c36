// A small page as Python sends it, for tests of the modules that work on it.
import { paretoFront } from "../../slimsweep/report/web/front.js";
import { defaultQuality, denseOf, metricOr, metricsOf, placedGroups } from "../../slimsweep/report/web/metrics.js";
import { toleranceOf } from "../../slimsweep/report/web/uncertainty.js";
import { readPage } from "../../slimsweep/report/web/unpack.js";

const number = (name, title, unit, axis, more, decimals = null) => ({ name, title, unit, decimals, axis, more });

export const TOP1 = {
  ...{ name: "top1", title: "top-1", word: "accuracy", highest: "most accurate", unit: "%", decimals: 2 },
  ...{ val: "val_top1", test: "test_top1", cut: "val_top1_cut", point: 1, points: " points", untouched: null },
};
export const R2 = {
  ...{ name: "r2", title: "R2", word: "R2", highest: "nearest to dense", unit: "", decimals: 4 },
  ...{ val: "val_r2", test: "test_r2", cut: "val_r2_cut", point: 0.01, points: "", untouched: 1 },
};

// A run's points: dense, and `searched` at two budgets with two seeds; the second budget is cheaper. And one that failed.
export const packed = () => ({
  columns: [
    number("macs", "MACs", "MACs", "x", false),
    number("params", "parameters", "parameters", "x", false),
    number("model_bytes", "size on disk", "B", "x", false),
    number("val_top1", "validation top-1", "%", "y", true, 2),
    number("test_top1", "test top-1", "%", "y", true, 2),
  ],
  measures: { top1: TOP1 },
  errors: [],
  timings: [
    number("latency_p50_ms", "latency p50", "ms", "x", false),
    number("images_per_second", "throughput", "images/s", "x", true),
  ],
  settings: ["cpu, batch 1", "cpu, batch 64"],
  runs: [{ name: "digits", model: "vit", data: "digits", dataset: 0, measure: "top1", untouched: 97 }],
  datasets: [{ name: "digits", runs: [0], reference_macs: 4e6 }],
  methods: ["dense", "searched"],
  points: {
    run: [0, 0, 0, 0, 0, 0],
    structure: [null, 0, 0, null, null, null],
    point: ["d", "s50-0", "s50-1", "s25-0", "s25-1", "broken"],
    method: ["dense", "searched", "searched", "searched", "searched", "searched"],
    seed: [0, 0, 1, 0, 1, 0],
    budget: [1, 0.5, 0.5, 0.25, 0.25, 0.1],
    unit: ["macs", "macs", "macs", "macs", "macs", "macs"],
    shares: ["", "", "", "", "", ""],
    status: ["ok", "ok", "ok", "ok", "ok", "failed"],
    error: [null, null, null, null, null, "out of memory"],
    macs: [4e6, 2e6, 2e6, 1e6, 1e6, null],
    macs_dense: [4e6, 4e6, 4e6, 4e6, 4e6, 4e6],
    params: [2e5, 1e5, 1e5, 6e4, 6e4, null],
    params_dense: [2e5, 2e5, 2e5, 2e5, 2e5, 2e5],
    model_bytes: [null, null, null, null, null, null],
    val_top1: [96, 95.8, 95.2, 90, 91, null],
    test_top1: [95, 94, 95, 89, 88, null],
  },
  groups: {
    run: [0, 0, 0],
    method: ["dense", "searched", "searched"],
    unit: ["macs", "macs", "macs"],
    budget: [1, 0.5, 0.25],
    shares: ["", "", ""],
    members: [[0], [1, 2], [3, 4]],
    best: [0, 1, 4],
    mean: {
      macs: [4e6, 2e6, 1e6],
      params: [2e5, 1e5, 6e4],
      model_bytes: [null, null, null],
      val_top1: [96, 95.5, 90.5],
      test_top1: [95, 94.5, 88.5],
      "latency_p50_ms:0": [8, 4, null],
      "images_per_second:0": [125, 250, null],
    },
    se: {
      macs: [null, 0, 0],
      params: [null, 0, 0],
      model_bytes: [null, null, null],
      val_top1: [null, 0.3, 0.5],
      test_top1: [null, 0.5, 0.5],
      "latency_p50_ms:0": [null, 0, null],
      "images_per_second:0": [null, 0, null],
    },
  },
  structures: [{ shape: 0, heads: [[4]], units: [8], tokens: [16], last: null }],
  curves: [null, null, null, null, null, null],
  bench: [
    [0, 0, [8, 125]],
    [1, 0, [4, 250]],
    [2, 0, [4, 250]],
  ],
});

/**
 * The same run of models without a head: R2 in place of top-1, a hundredth of it, and k-NN where labels were given.
 * @param {any} data what `packed` returned
 */
export function judgedByR2(data) {
  data.measures = { r2: R2 };
  data.runs[0] = { ...data.runs[0], measure: "r2", untouched: 1 };
  const column = number("test_r2", "R2 of the features, test", "", "y", true, 4);
  data.columns.splice(
    3,
    2,
    number("val_r2", "R2 of the features, validation", "", "y", true, 4),
    column,
    number("val_knn_top1", "k-NN top-1, validation", "%", "y", true, 2),
  );
  data.errors = [
    {
      ...column,
      name: "test_r2_error",
      title: `1 \u2212 ${column.title}`,
      decimals: null,
      more: false,
      of: "test_r2",
      best: 1,
    },
  ];
  const hundredth = (v) => (v === null ? null : v / 100);
  for (const numbers of [data.points, data.groups.mean, data.groups.se]) {
    [numbers.val_r2, numbers.test_r2] = [numbers.val_top1.map(hundredth), numbers.test_top1.map(hundredth)];
    numbers.val_knn_top1 = numbers.val_top1;
    delete numbers.val_top1;
    delete numbers.test_top1;
  }
  data.groups.mean.test_r2_error = data.groups.mean.test_r2.map((v) => 1 - v);
  data.groups.se.test_r2_error = data.groups.se.test_r2;
}

/** The page, after `change` was made to what Python sends. */
export function page(change = () => {}) {
  const data = packed();
  change(data);
  return readPage(data);
}

/** All points of a page's data as the page draws them against a cost. */
export function viewOf(of, x = "macs") {
  const metrics = metricsOf(of);
  const view = {
    page: of,
    metrics,
    x: metricOr(metrics.x, x, "macs"),
    y: metricOr(metrics.y, defaultQuality(of, of.points), ""),
  };
  const groups = placedGroups(of, new Set(of.points), view.x, view.y);
  const tolerance = toleranceOf(of, of.points, view.x);
  const front = paretoFront(groups, false, true, tolerance);
  return { ...view, tolerance, shown: of.points, groups, front, dense: [denseOf(of, 0)], runs: [0], mixed: false };
}
