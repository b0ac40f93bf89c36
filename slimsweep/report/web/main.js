// From the reader's choices to a view, from a view to the page.

import { drawAbout } from "./about.js";
import { actions } from "./actions.js";
import { drawAnswer, drawExamples } from "./answer.js";
import { drawChips, drawControls, drawMixing } from "./controls.js";
import { byId, find } from "./dom.js";
import { downloadFigure } from "./download.js";
import { drawFront, frontCaption, moveRing } from "./figure.js";
import { count } from "./format.js";
import { kneeOf, paretoFront } from "./front.js";
import { drawHeadline } from "./headline.js";
import { drawFailed, drawLive, drawStopped, drawWritten, jump, refreshLater } from "./live.js";
import { errorOf, placedByError } from "./log_error.js";
import { drawMethods } from "./methods.js";
import {
  columnMetric,
  costKey,
  defaultCost,
  defaultQuality,
  denseOf,
  metricOr,
  metricsOf,
  placedGroups,
  trainedOf,
} from "./metrics.js";
import { outsideOf } from "./near.js";
import { drawOutside } from "./outside.js";
import { plotly } from "./plotly.js";
import { drawPoint } from "./point.js";
import { answerQuestion } from "./question.js";
import { drawSearch } from "./search.js";
import { linkService } from "./served.js";
import { inData, readState, state, writeState } from "./state.js";
import { darkMode } from "./styles.js";
import { drawTable, markRow } from "./table.js";
import { drawCautions, toleranceOf } from "./uncertainty.js";
import { unpackData, unpackPlotly } from "./unpack.js";

/** @import { Page, Point, View } from "./types.js" */

/** @type {Page} */
let page = null; // until it is unpacked
/** @type {View} */
let view = null; // until there is a page

/** @returns {View} */
function computeView() {
  const metrics = metricsOf(page);
  if (state.data !== "all" && !page.datasets[state.data]) state.data = 0;
  const shown = page.points.filter(
    (p) => inData(page, p.run) && !state.off.has(`m:${p.method}`) && !state.off.has(`r:${page.runs[p.run].name}`),
  );
  const none = {
    x: columnMetric(page.columns.find((c) => c.axis === "x")),
    y: columnMetric(page.columns.find((c) => c.axis === "y")),
  };
  const x = metricOr(metrics.x, state.x, costKey(metrics.x, defaultCost(shown))) ?? none.x;
  const asked = metricOr(metrics.y, state.y, defaultQuality(page, shown)) ?? none.y;
  const error = state.yscale === "log" ? errorOf(asked) : null; // of an accuracy, its error is what a log axis shows
  const y = error ?? asked;
  const byQuality = placedGroups(page, new Set(shown), x, asked);
  const placed = error ? placedByError(byQuality) : byQuality;
  // An error is shown on a logarithmic axis, where none at all has no place.
  const loggable = placed.filter((g) => g.y > 0);
  const log = state.yscale ? state.yscale === "log" : Boolean(y.error);
  const logy = log && loggable.length > 0 && (Boolean(y.error) || loggable.length === placed.length);
  const groups = logy ? loggable : placed;
  const tolerance = toleranceOf(page, shown, x);
  // One front for each data set: accuracies on different ones do not compare.
  const fronts = page.datasets
    .map((_, d) =>
      paretoFront(
        trainedOf(
          page,
          groups.filter((g) => page.runs[g.run].dataset === d),
        ),
        x.more,
        y.more,
        tolerance,
      ),
    )
    .filter((f) => f.length);
  const front = fronts.flat();
  const xs = groups.map((g) => g.x);
  // Models of different sizes share an axis best if it is a logarithmic one. A budget is hardly ever used up to the last MAC.
  const wide = xs.length > 0 && Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 3.9;
  /** @type {View} */
  const next = {
    page,
    metrics,
    x,
    y,
    shown,
    groups,
    front,
    fronts,
    fronted: new Set(front.flatMap((g) => g.members)),
    tolerance,
    knee: fronts.length === 1 ? kneeOf(front) : null,
    runs: page.runs.map((_, r) => r).filter((r) => inData(page, r)),
    dense: page.runs.map((_, r) => denseOf(page, r)),
    logx: state.xscale ? state.xscale === "log" : wide,
    logy,
    unplaced: placed.length - groups.length,
    mixed: state.data === "all" && page.datasets.length > 1,
  };
  const frontOf = new Map(fronts.map((f) => [page.runs[f[0].run].dataset, f]));
  const drawn = state.dominated ? groups : front;
  next.outside = outsideOf({ ...next, groups: drawn }, (g) => frontOf.get(page.runs[g.run].dataset) ?? front);
  next.cropped = next.outside.size > 0 && !state.whole;
  next.answer = answerQuestion(next, state.question);
  const chosen = state.point && shown.find((p) => p.point === state.point && page.runs[p.run].name === state.run);
  next.selected = chosen || next.answer?.answer || next.knee?.best || (front.length ? front[front.length - 1].best : null);
  return next;
}

/** Draw the page again, after a choice. */
function update() {
  view = computeView();
  writeState();
  drawCautions(view);
  drawHeadline(view);
  drawMixing(view);
  drawControls(view);
  drawChips(view);
  drawExamples(view);
  drawAnswer(view);
  drawFront(view);
  drawOutside(view);
  byId("front-caption").textContent = frontCaption(view);
  byId("front-figure").setAttribute(
    "aria-label",
    `Pareto front: ${view.y.label} against ${view.x.label}, ${count(view.groups.length, "model")}, ${view.front.length} on the front. Left and right arrow keys open the models of the front, up and down all of them.`,
  );
  drawPoint(view);
  drawMethods(view);
  drawTable(view);
  drawSearch(view);
}

/**
 * Open a point: everything else stays as it is.
 * @param {Point} point
 */
function choose(point) {
  state.run = page.runs[point.run].name;
  state.point = point.point;
  const shown = view.shown.includes(point);
  if (!shown) return update();
  view.selected = point;
  writeState();
  moveRing(view);
  drawPoint(view);
  markRow(view);
  drawSearch(view);
}

/**
 * Answer a question.
 * @param {string} text
 */
function ask(text) {
  byId("question-text").value = text;
  state.question = text;
  view.answer = answerQuestion(view, text);
  if (view.answer?.answer) {
    state.run = page.runs[view.answer.answer.run].name;
    state.point = view.answer.answer.point;
  }
  update();
}

function listen() {
  const box = byId("question-text");
  box.value = state.question;
  let waiting = 0;
  box.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => ask(box.value), 200);
  });
  byId("question").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    ask(box.value);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !box.value) return;
    event.preventDefault();
    clearTimeout(waiting);
    ask("");
  });
  byId("question-clear").addEventListener("click", () => {
    ask("");
    box.focus();
  });
  byId("front-figure").addEventListener("keydown", (event) => {
    const cost = (g) => (view.x.more ? -g.x : g.x);
    const all = event.key === "ArrowUp" || event.key === "ArrowDown";
    const order = all ? [...view.groups].sort((a, b) => cost(a) - cost(b) || a.y - b.y) : view.front;
    if (event.key === "Enter") return byId("point").scrollIntoView();
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key) || !order.length) return;
    event.preventDefault();
    const here = order.findIndex((g) => g.members.includes(view.selected));
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    const to =
      event.key === "Home"
        ? 0
        : event.key === "End"
          ? order.length - 1
          : here < 0
            ? 0
            : Math.min(order.length - 1, Math.max(0, here + step));
    choose(order[to].best);
  });
  document.addEventListener("click", (event) => {
    const button = /** @type {any} */ (event.target).closest("button[data-figure]");
    if (button) downloadFigure(button.dataset.figure, button.dataset.format);
  });
  find(".skip").addEventListener("click", jump);
  darkMode.addEventListener("change", () => {
    byId("search").removeAttribute("data-run");
    update();
  });
  addEventListener("beforeprint", () => drawForPaper(true));
  addEventListener("afterprint", () => drawForPaper(false));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar
    width = innerWidth;
    drawFront(view);
  });
}

/**
 * The whole table, and figures as wide and as light as paper; or all as on the screen again.
 * @param {boolean} paper
 */
function drawForPaper(paper) {
  document.documentElement.classList.toggle("paper", paper);
  drawTable(view, paper);
  drawFront(view);
  if (!plotly()) return;
  const figure = byId("front-figure");
  // A figure that is drawn already keeps its width until the window's changes.
  if (figure.querySelector(".plot-container")) plotly().relayout(figure, { width: figure.clientWidth });
  drawPoint(view);
  byId("search").removeAttribute("data-run");
  drawSearch(view);
}

async function main() {
  Object.assign(actions, { update, choose, ask, view: () => view });
  if (typeof DecompressionStream === "undefined")
    throw new Error("this page unpacks itself with DecompressionStream: open it in a browser of 2023 or later");
  page = await unpackData();
  readState();
  drawLive(page);
  drawFailed(page);
  drawStopped(page);
  drawWritten();
  drawAbout(page);
  linkService();
  refreshLater(page);
  update(); // tables and text at once, figures when their library is unpacked
  listen();
  await unpackPlotly();
  drawFront(view);
  drawPoint(view);
  drawSearch(view);
  if (history.state?.scroll) scrollTo(0, history.state.scroll);
  document.documentElement.dataset.ready = "yes";
}

main().catch((problem) => {
  const node = byId("problem");
  node.hidden = false;
  node.textContent = `This page could not be drawn: ${problem.message}`;
  console.error(problem);
});
