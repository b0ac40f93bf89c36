// How far runs are: progress, what failed, and loading the page again while a driver goes on.

import { byId, el, find } from "./dom.js";
import { capital, count, known, show } from "./format.js";
import { measureOf } from "./metrics.js";

/** @import { Page } from "./types.js" */

/** @param {Page} page */
export function drawLive(page) {
  const live = byId("live");
  live.replaceChildren();
  for (const [r, run] of page.runs.entries()) {
    const s = run.progress;
    if (!s || (s.finished && page.runs.length > 1 && !s.failed)) continue;
    const box = el("div", { class: "progress-box" });
    if (!s.finished || s.failed) {
      const label = `${s.done} of ${count(s.planned, "point")} done, ${s.failed} failed, ${s.running} running`;
      const progress = el("div", { class: "progress", role: "img", "aria-label": s.planned ? label : s.next });
      for (const [name, n] of Object.entries(s.bar)) {
        const piece = el("span", { class: name });
        piece.style.flexGrow = n;
        progress.append(piece);
      }
      const said = [];
      if (s.planned) said.push(`${s.done} of ${count(s.planned, "point")} done`, `${s.failed} failed`, `${s.running} running`);
      if (s.stopped) said.push(`${s.stopped} stopped early`);
      if (page.runs.length > 1) said.unshift(run.name);
      const line = el("p", {}, el("b", {}, said.join(", ")), said.length ? ". " : "", s.next ? `${capital(s.next)}.` : "");
      if (s.failed) line.append(" ", el("a", { href: "#failed", onclick: jump }, "What failed"), ".");
      box.append(progress, line);
    }
    if (!s.finished && s.under_way.length)
      box.append(
        el("p", { class: "muted small" }, s.under_way.map((part) => partSentence(part, measureOf(page, r))).join(" · ")),
      );
    if (box.childNodes.length) live.append(box);
  }
}

function partSentence({ name, state, epochs, epochs_total: total, val }, measure) {
  const at = state === "waiting" ? "waiting" : `epoch ${epochs} of ${total}`;
  return `${name}: ${at}${known(val) ? `, validation ${measure.title} ${show(measure, val)}` : ""}`;
}

// Links inside the page: the address holds the choices, so it must not become a place.
export function jump(event) {
  event.preventDefault();
  find(event.currentTarget.getAttribute("href")).scrollIntoView();
}

/** @param {Page} page */
export function drawFailed(page) {
  const failed = page.points.filter((p) => p.status === "failed");
  const title = failed.length === 1 ? "A point that failed" : "Points that failed";
  const again = "They take no part in the figures above. The command that started the run tries them again.";
  drawLeftOut(page, "failed", failed, title, again);
}

/**
 * Learning rates that were behind and were not trained to their end.
 * @param {Page} page
 */
export function drawStopped(page) {
  const stopped = page.points.filter((p) => p.status === "stopped");
  const title = stopped.length === 1 ? "A point that was stopped early" : "Points that were stopped early";
  const why = "Another learning rate of the same method and budget was ahead. They take no part in the figures above.";
  drawLeftOut(page, "stopped", stopped, title, why);
}

function drawLeftOut(page, id, points, title, caption) {
  const section = byId(id);
  section.hidden = !points.length;
  section.replaceChildren(
    el("h2", { id: `${id}-title` }, title),
    el("p", { class: "caption" }, caption),
    ...points.map((p) =>
      el(
        "details",
        { open: points.length <= 3 },
        el("summary", {}, page.runs.length > 1 ? `${page.runs[p.run].name}: ` : "", el("code", {}, p.point)),
        el("pre", { class: "error" }, p.error || "no error text"),
      ),
    ),
  );
}

/**
 * While a sweep runs the page loads itself again now and then, but not while somebody uses it.
 * @param {Page} page
 */
export function refreshLater(page) {
  if (!page.refresh_seconds) return;
  let busy = 0;
  for (const kind of ["keydown", "pointerdown", "wheel"]) addEventListener(kind, () => (busy = Date.now()), { passive: true });
  let paused = false;
  const pause = el("button", { type: "button", class: "quiet", id: "pause", "aria-pressed": "false" }, "Pause");
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
  });
  byId("live").append(
    el("p", { class: "muted small", id: "refresh" }, `This page refreshes itself every ${page.refresh_seconds} s. `, pause),
  );
  setInterval(() => {
    if (paused || document.hidden || Date.now() - busy < 5000) return;
    // The browser cannot restore the place by itself: the page is short until it has unpacked its data.
    history.replaceState({ scroll: scrollY }, "");
    location.reload();
  }, page.refresh_seconds * 1000);
}

export function drawWritten() {
  const node = byId("written");
  const at = new Date(node.dateTime);
  node.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
