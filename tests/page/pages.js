// A small page as Python sends it, for tests of the modules that work on it.
import { readPage } from "../../slimsweep/report/web/unpack.js";

const number = (name, title, unit, axis, more, decimals = null) => ({ name, title, unit, decimals, axis, more });

// A run's points: dense, and `searched` at two budgets with two seeds; the second budget is cheaper. And one that failed.
export const packed = () => ({
  columns: [
    number("macs", "MACs", "MACs", "x", false),
    number("params", "parameters", "parameters", "x", false),
    number("model_bytes", "size on disk", "B", "x", false),
    number("val_top1", "validation top-1", "%", "y", true, 2),
    number("test_top1", "test top-1", "%", "y", true, 2),
  ],
  timings: [
    number("latency_p50_ms", "latency p50", "ms", "x", false),
    number("images_per_second", "throughput", "images/s", "x", true),
  ],
  settings: ["cpu, batch 1", "cpu, batch 64"],
  runs: [{ name: "digits", model: "vit", data: "digits", dataset: 0, untouched: 97 }],
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

/** The page, after `change` was made to what Python sends. */
export function page(change = () => {}) {
  const data = packed();
  change(data);
  return readPage(data);
}
