// Numbers of points: what can be an axis, means over seeds, the front and its knee.

const QUALITIES = [
  { key: "test_top1", label: "test top-1", unit: "%", digits: 2, more: true, top1: true },
  { key: "val_top1", label: "validation top-1", unit: "%", digits: 2, more: true, top1: true },
  { key: "test_top5", label: "test top-5", unit: "%", digits: 2, more: true },
  { key: "test_loss", label: "test loss", unit: "nats", digits: 3, more: false },
];

const COSTS = [
  { key: "macs", label: "MACs", unit: "MACs", more: false },
  { key: "params", label: "parameters", unit: " parameters", more: false },
  { key: "model_bytes", label: "size on disk", unit: "B", more: false },
  { key: "train_seconds", label: "training time", unit: "s", more: false },
];

const BENCH = [
  { field: 0, key: "latency", label: "latency p50", unit: "ms", more: false },
  { field: 2, key: "throughput", label: "throughput", unit: "images/s", more: true },
  { field: 3, key: "memory", label: "peak memory", unit: "B", more: false },
];

// Every metric gets `of(point)`; those that no point has are left out.
function metricsOf(page) {
  const plainMetric = (m) => ({ ...m, of: (p) => p[m.key] });
  const timed = page.settings.flatMap((setting, s) =>
    BENCH.map((m) => ({
      ...m,
      key: `${m.key}:${s}`,
      kind: m.key,
      setting,
      label: `${m.label} (${setting})`,
      of: (p) => p.bench[s]?.[m.field] ?? null,
    })),
  );
  const has = (m) => page.points.some((p) => known(m.of(p)));
  return { x: [...COSTS.map(plainMetric), ...timed].filter(has), y: QUALITIES.map(plainMetric).filter(has) };
}

function show(metric, value) {
  if (!known(value)) return DASH;
  if (metric.unit === "%") return percent(value, metric.digits);
  if (metric.unit === "nats") return `${fixed(value, metric.digits)} nats`;
  if (metric.unit === "ms") return `${significant(value)} ms`;
  if (metric.unit === "s") return duration(value);
  if (metric.unit === "images/s") return `${significant(value)} images/s`;
  return scaled(value, metric.unit);
}

// What was asked of a point or group: a fraction of the MACs, and where shares of gates were asked for, those.
const sharesOf = (p) => (p.shares || "").replace(/[{}"]/g, "").replaceAll(":", " ").replaceAll(",", ", ");
const asked = (p) => share(p.budget, 1) + (p.shares ? ` (${sharesOf(p)})` : "");

// Points of one run, method, budget and shares differ by their seed only.
function groupsOf(shown, x, y) {
  const groups = new Map();
  for (const point of shown) {
    if (point.status !== "ok" || !known(x.of(point)) || !known(y.of(point))) continue;
    const { run, method, budget, shares } = point;
    const key = `${run}|${method}|${budget}|${shares || ""}`;
    if (!groups.has(key)) groups.set(key, { key, run, method, budget, shares, members: [] });
    groups.get(key).members.push(point);
  }
  for (const group of groups.values()) {
    group.x = mean(group.members.map(x.of));
    const values = group.members.map(y.of);
    group.y = mean(values);
    group.se = standardError(values);
    group.best = bestOf(group.members);
  }
  return [...groups.values()];
}

// Choices are made by validation, so that the test split stays a test; by test only where nothing else is known.
const judged = (point) => (known(point.val_top1) ? point.val_top1 : known(point.test_top1) ? point.test_top1 : -Infinity);
const bestOf = (members) => members.reduce((a, b) => (judged(b) > judged(a) ? b : a));

// Non-dominated groups, cheapest first; equal ones both stay.
function frontOf(groups, x, y) {
  const cost = (g) => (x.more ? -g.x : g.x);
  const quality = (g) => (y.more ? g.y : -g.y);
  const sorted = [...groups].sort((a, b) => cost(a) - cost(b) || quality(b) - quality(a));
  const front = [];
  for (const group of sorted) {
    const last = front[front.length - 1];
    if (!last || quality(group) > quality(last) || (quality(group) === quality(last) && cost(group) === cost(last)))
      front.push(group);
  }
  return front;
}

// The group farthest above the straight line between the front's ends, both axes scaled to [0, 1]; null where nothing bends.
function kneeOf(front) {
  if (front.length < 3) return null;
  const [first, last] = [front[0], front[front.length - 1]];
  if (first.x === last.x || first.y === last.y) return null;
  const above = (g) => (g.y - first.y) / (last.y - first.y) - (g.x - first.x) / (last.x - first.x);
  const highest = front.reduce((a, b) => (above(b) > above(a) ? b : a));
  return above(highest) > 1e-9 ? highest : null;
}

// What a change is measured against: the retrained dense model, or the untouched one before that has landed.
function denseOf(page, run) {
  const rows = page.points.filter((p) => p.run === run && p.method === "dense" && p.status === "ok" && known(p.test_top1));
  if (rows.length) return { top1: mean(rows.map((p) => p.test_top1)), what: "retrained dense", rows };
  const untouched = page.runs[run].untouched;
  return known(untouched) ? { top1: untouched, what: "untouched dense", rows: [] } : { top1: null, what: "dense", rows: [] };
}
