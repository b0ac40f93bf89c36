import assert from "node:assert/strict";
import { test } from "node:test";

import { answerQuestion, parseQuestion, sayValue } from "../../slimsweep/report/web/question.js";
import { judgedByR2, page, viewOf } from "./pages.js";

const conditionsOf = (text) => parseQuestion(text).conditions.map((c) => [c.kind, c.most, c.value]);

const QUESTIONS = {
  "at most 1.2 GMACs": [["macs", true, 1.2e9]],
  "1.2 GFLOPs": [["macs", true, 1.2e9]], // a cost is a limit from above where nothing is said
  "no more than 1,200 MMACs": [["macs", true, 1.2e9]],
  "≤ 1,2 GMACs": [["macs", true, 1.2e9]],
  "at least 80 %": [["top1", false, 80]],
  "80 % top-1": [["top1", false, 80]], // a quality is one from below
  "at most 80 percent accuracy": [["top1", true, 80]],
  "at least 0.95 R2": [["r2", false, 0.95]],
  "R2 at least 0.95": [["r2", false, 0.95]],
  "R² ≥ 0,95": [["r2", false, 0.95]],
  "at least an R2 of 0.95 and at most 1 GMACs": [
    ["r2", false, 0.95],
    ["macs", true, 1e9],
  ],
  "at least 70 % k-NN": [["val_knn_top1", false, 70]],
  "70 % linear probe top-1": [["val_probe_top1", false, 70]],
  "over 95 % top-5": [["top5", false, 95]],
  "within 1 point of dense": [["drop", true, 1]],
  "at most 50 % of dense": [["share", true, 50]],
  "under 40 % of the MACs": [["share", true, 40]],
  "at most 60 % of params": [["share_params", true, 60]],
  "60 percent of the parameters": [["share_params", true, 60]],
  "at most 100k params": [["params", true, 1e5]],
  "5 million parameters": [], // prefixes are letters
  "5 M parameters": [["params", true, 5e6]],
  "at most 5 ms": [["latency_p50_ms", true, 5]],
  "300 us latency": [["latency_p50_ms", true, 0.3]],
  "at most 1 s": [["latency_p50_ms", true, 1000]],
  "at least 2k images per second": [["images_per_second", false, 2000]],
  "300 img/s": [["images_per_second", false, 300]],
  "at most 400 kB": [["model_bytes", true, 4e5]],
  "at most 2 MiB on disk": [["model_bytes", true, 2 * 1024 ** 2]],
  "at most 1.8 MMACs and at least 90 % but 100k params": [
    ["macs", true, 1.8e6],
    ["top1", false, 90],
    ["params", true, 1e5],
  ],
};

for (const [text, expected] of Object.entries(QUESTIONS))
  test(`conditions of "${text}"`, () => assert.deepEqual(conditionsOf(text).map(rounded), expected.map(rounded)));

const rounded = ([kind, most, value]) => [kind, most, Number(value.toPrecision(12))];

for (const text of ["fast please", "at most 5 bananas", "80", "at most 1.2 GMACs and pretty", "at most"])
  test(`"${text}" is no question`, () => assert.match(parseQuestion(text).problem, /is not a condition: say how much of what/));

const answered = (text, view = viewOf(page())) => answerQuestion(view, text);

test("no question has no answer", () => {
  assert.equal(answered(" "), null);
});

test("a limit on cost is answered by the best on validation, not on test", () => {
  const answer = answered("at most 2 MMACs");
  assert.equal(answer.answer.point, "s50-0"); // s50-1 is better on test
  assert.equal(answer.limited, true);
  assert.deepEqual([...answer.fits].map((p) => p.point).sort(), ["s25-0", "s25-1", "s50-0", "s50-1"]);
});

test("a limit on quality alone is answered by the cheapest", () => {
  const answer = answered("at least 90.5 %");
  assert.equal(answer.answer.point, "s25-1");
  assert.equal(answer.limited, false);
});

test("conditions on dense count from its mean on validation", () => {
  assert.deepEqual(
    [...answered("within 0.5 points of dense").fits].map((p) => p.point),
    ["d", "s50-0", "s50-1"], // 95.5 in the mean
  );
  assert.deepEqual(
    [...answered("within 0.4 points of dense").fits].map((p) => p.point),
    ["d"], // 95.8 of one seed would be near enough
  );
});

test("shares are of the dense model's MACs or parameters", () => {
  assert.equal(answered("at most 25 % of dense").fits.size, 2);
  assert.equal(answered("at most 30 % of params").fits.size, 2);
  assert.equal(answered("at most 29 % of params").fits.size, 0);
});

test("timings are those of the setting on the axis, and name it", () => {
  const of = page((data) => data.bench.push([3, 1, [40, 1600]], [4, 1, [44, 1500]]));
  const first = answered("at most 5 ms", viewOf(of));
  assert.equal(first.conditions[0].setting, "cpu, batch 1");
  assert.equal(first.answer.point, "s50-0");
  of.groups[2].mean["latency_p50_ms:1"] = 42;
  const second = answered("at most 42 ms", viewOf(of, "latency_p50_ms:1"));
  assert.equal(second.conditions[0].setting, "cpu, batch 64");
  assert.equal(second.answer.point, "s25-1"); // the better of both seeds, whose mean is 42 ms
  assert.equal(answered("at most 41 ms", viewOf(of, "latency_p50_ms:1")).answer, null); // 40 ms was one seed's
});

test("where nothing fits, the nearest is named", () => {
  const { answer, nearest, fits } = answered("at most 0.5 MMACs and at least 80 %");
  assert.equal(answer, null);
  assert.equal(fits.size, 0);
  assert.equal(nearest.point.macs, 1e6);
  assert.equal(nearest.value, 1e6);
  assert.equal(nearest.condition.kind, "macs");
  // Each by itself is met, both together are not.
  assert.equal(answered("at most 1 MMACs and at least 95 %").nearest, null);
});

test("what cannot be answered says why", () => {
  assert.match(answered("at most 5 kB").problem, /no point has that number/);
  const untimed = page((data) => (data.bench = []));
  assert.match(answered("at most 5 ms", viewOf(untimed)).problem, /run slimsweep bench/);
  assert.match(answered("at most 2 MMACs", { ...viewOf(page()), mixed: true }).problem, /Choose one data set/);
});

test("failed and hidden points answer nothing", () => {
  const of = page();
  assert.ok(![...answered("at most 9 GMACs").fits].some((p) => p.status !== "ok"));
  const view = { ...viewOf(of), shown: of.points.filter((p) => p.method === "dense") };
  assert.deepEqual(
    [...answered("at most 9 GMACs", view).fits].map((p) => p.point),
    ["d"],
  );
});

test("values are said in their units", () => {
  assert.equal(sayValue("macs", 1e6), "1.00 MMACs");
  assert.equal(sayValue("params", 6e4), "60.0 k parameters");
  assert.equal(sayValue("model_bytes", 6e4), "60.0 kB");
  assert.equal(sayValue("latency_p50_ms", 5.25), "5.25 ms");
  assert.equal(sayValue("images_per_second", 250), "250 images/s");
  assert.equal(sayValue("drop", 0.5), "0.50 points below dense");
  assert.equal(sayValue("share", 25), "25.0 % of the dense model's MACs");
  assert.equal(sayValue("share_params", 25), "25.0 % of the dense model's parameters");
  assert.equal(sayValue("top1", 90), "90.00 %");
});

test("models without a head are asked for by R2, k-NN or their distance from dense, and judged by R2", () => {
  const ask = (text) => answered(text, viewOf(page(judgedByR2)));
  assert.equal(ask("at least 0.95 R2").answer.point, "s50-0"); // 0.958 on validation: 0.952 is the other seed's, at equal MACs
  assert.equal(ask("at least 0.955 R2").answer.point, "s50-0");
  assert.equal(ask("at most 1 MMACs").answer.point, "s25-1"); // the higher R2 on validation
  assert.equal(ask("within 5.5 points of dense").answer.point, "s25-1"); // a point is 0.01
  assert.equal(ask("at least 90.5 % k-NN").answer.point, "s25-1");
  assert.equal(ask("at least 0.99 R2").answer, null);
  assert.equal(ask("at least 0.99 R2").nearest.point.point, "d");
  assert.equal(sayValue("r2", 0.96), "R2 0.9600");
  assert.equal(ask("at least 0.95 R2").limited, false);
});

test("a measure that these models are not judged by is answered with the one that they are", () => {
  assert.match(
    answered("at least 80 %", viewOf(page(judgedByR2))).problem,
    /are judged by R2, so ask for \u201cat least 0.95 R2/,
  );
  assert.match(answered("at least 0.9 R2").problem, /are judged by top-1, so ask for \u201cat least 80 %/);
  assert.match(answered("at least 80 % k-NN").problem, /no point has that number/);
});

const WORDED = {
  "best under 1 MMAC": [["macs", true, 1e6]],
  "the most accurate model with at most 2 MMACs?": [["macs", true, 2e6]],
  "accuracy at least 89 %": [["top1", false, 89]],
  "accuracy >= 89": [["top1", false, 89]],
  "MACs < 3M and params < 100k": [
    ["macs", true, 3e6],
    ["params", true, 1e5],
  ],
  "MACs at most 3 MMACs": [["macs", true, 3e6]],
  "MACs under 50 %": [["share", true, 50]],
  "latency at most 5 ms": [["latency_p50_ms", true, 5]],
  "at most 1e6 MACs": [["macs", true, 1e6]],
  "within 1 % of dense": [["drop", true, 1]], // not 1 % of its MACs
  "within 2 percent": [["drop", true, 2]],
  "within 50 % of the MACs": [["share", true, 50]],
};
for (const [text, expected] of Object.entries(WORDED))
  test(`what is asked for may come first: "${text}"`, () => assert.deepEqual(conditionsOf(text).map(rounded), expected));

for (const text of ["and", ",", "best", "%", "the cheapest?", "at most -3 MMACs", "best fast one"])
  test(`"${text}" asks for nothing`, () => assert.match(parseQuestion(text).problem, /is not a condition/));

test("the best or the cheapest is what the question says", () => {
  assert.equal(answered("at most 2 MMACs").answer.point, "s50-0");
  assert.equal(answered("cheapest under 2 MMACs").answer.point, "s25-1");
  assert.equal(answered("at least 90 %").answer.point, "s25-1");
  assert.equal(answered("best with at least 90 %").answer.point, "d");
  const back = answered("smallest at 50 %");
  assert.deepEqual(back.choices, ["smallest with at most 50 %", "smallest with at least 50 % accuracy"]);
  for (const choice of back.choices) assert.equal(answered(choice).answer.point, "s25-1");
});

test("of models equally near to what nothing meets, the cheapest is named, as among answers", () => {
  const of = page((data) => (data.groups.mean.val_top1 = [96, 96, 90]));
  assert.equal(answered("at least 99 %", viewOf(of)).nearest.point.macs, 2e6);
});
