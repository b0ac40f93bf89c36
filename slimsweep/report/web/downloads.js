// The page of a model's files: each can be made once, by the service, and downloaded from then on.

import { ask } from "./ask_service.js";
import { byId, copyButton, el } from "./dom.js";

const EVERY = 1500; // milliseconds between two questions while a file is being made
const TITLES = { timm: "timm folder", onnx: "ONNX", pt2: "torch.export" };
const query = location.search;

/** @param {unknown} problem */
function say(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem instanceof Error ? problem.message : "";
}

/** @param {number} bytes */
const sizeOf = (bytes) => (bytes >= 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(1)} MiB` : `${Math.ceil(bytes / 1024)} KiB`);

/** @param {any} file */
function fileOf(file) {
  const of = `${query}&format=${file.format}`;
  const make = async () => {
    try {
      await ask(`api/downloads${of}`, { method: "POST" });
      say("");
    } catch (problem) {
      say(problem);
    }
    await draw();
  };
  const button = {
    ready: () => el("a", { href: `api/downloads/file${of}`, download: file.file }, `${file.file} (${sizeOf(file.bytes)})`),
    making: () => el("span", { class: "muted" }, "being made"),
    missing: () => el("button", { type: "button", onclick: make }, "Make it"),
    failed: () => el("button", { type: "button", onclick: make }, "Try again"),
  }[/** @type {"ready" | "making" | "missing" | "failed"} */ (file.state)]();
  return el(
    "section",
    { class: "download", id: `file-${file.format}` },
    el("div", { class: "section-head" }, el("h2", {}, TITLES[/** @type {"timm" | "onnx" | "pt2"} */ (file.format)]), button),
    file.why ? el("p", { class: "wrong" }, file.why) : null,
    el("div", { class: "code" }, el("pre", {}, file.load), copyButton(file.load)),
  );
}

let drawn = "";

async function draw() {
  try {
    const files = await ask(`api/downloads${query}`);
    const text = JSON.stringify(files);
    if (text !== drawn) byId("files").replaceChildren(...files.map(fileOf));
    drawn = text;
    if (files.some((/** @type {any} */ file) => file.state === "making")) setTimeout(draw, EVERY);
  } catch (problem) {
    say(problem);
  }
}

const run = new URLSearchParams(query).get("run") ?? "";
byId("to-run").href = `runs/${run.split("/").map(encodeURIComponent).join("/")}`;
draw();
