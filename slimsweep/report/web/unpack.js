// What the page carries: deflated, in base64. The browser itself unpacks it.

/** @import { Group, Page, Point } from "./types.js" */

/** @param {string} id */
async function unpack(id) {
  const node = /** @type {HTMLElement} */ (document.getElementById(id));
  const binary = atob((node.textContent ?? "").trim());
  node.remove(); // two megabytes of text that nothing reads again
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

/** The data of the page. */
export async function unpackData() {
  return readPage(JSON.parse(await unpack("packed-data")));
}

/**
 * From columns to one object per point and per group: the rest of the page works on those.
 * @param {any} page as Python sends it
 * @returns {Page}
 */
export function readPage(page) {
  const columns = page.points;
  /** @type {Point[]} */
  const points = columns.point.map((/** @type {string} */ _, /** @type {number} */ i) => {
    /** @type {any} */
    const point = { i, bench: {} };
    for (const [name, values] of Object.entries(columns)) point[name] = values[i];
    point.curve = page.curves[i];
    point.layers = point.structure === null ? null : page.structures[point.structure];
    return point;
  });
  for (const [i, setting, numbers] of page.bench) points[i].bench[setting] = numbers;
  for (const model of page.int8?.models ?? [])
    points[model.point].int8 = { ...model, numbers: named(page.int8.columns, model) };
  const { members, best, mean, se, ...keys } = page.groups;
  /** @type {Group[]} */
  const groups = members.map((/** @type {number[]} */ places, /** @type {number} */ i) => ({
    ...at(keys, i),
    members: places.map((place) => points[place]),
    best: points[best[i]],
    mean: at(mean, i),
    se: at(se, i),
  }));
  const runs = page.runs.map((/** @type {any} */ run) => ({ images: {}, cautions: [], untouched_val: null, ...run }));
  return { alike: 0, handful: 0, int8: { columns: [] }, ...page, runs, points, groups, untrained: page.untrained ?? [] };
}

/**
 * One row of a table of columns.
 * @param {Record<string, any[]>} columns
 * @param {number} i
 */
const at = (columns, i) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[i]]));

/**
 * The numbers of an INT8 model by their columns' names.
 * @param {{ name: string }[]} columns
 * @param {{ numbers: (number | null)[] }} model
 */
const named = (columns, { numbers }) => Object.fromEntries(columns.map(({ name }, c) => [name, numbers[c]]));

/** Runs the figure library that is packed into the page, or lies beside the pages of a service. */
export async function unpackPlotly() {
  const beside = document.getElementById("packed-plotly")?.dataset.at;
  const script = document.createElement("script");
  script.textContent = beside ? await textAt(beside) : await unpack("packed-plotly"); // allowed by its hash in the page's policy
  document.head.append(script);
  if (!("Plotly" in window)) throw new Error("the browser refused to run the figure library of this page");
}

/** @param {string} address */
async function textAt(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the figure library is not at ${address} (${answer.status}): load the page again`);
  return answer.text();
}
