// A figure as a file that explains itself: with its title, its legend and its source.

import { byId, el, find } from "./dom.js";
import { plain } from "./format.js";
import { plotly } from "./plotly.js";
import { theme } from "./styles.js";

/**
 * What a figure's file says beside the figure: a title, and one entry per colour.
 * @typedef {{ title: string, legend: { name: string, colour: string, symbol?: string, dash?: string }[] }} Description
 */

/** @type {Map<string, () => Description>} */
const descriptions = new Map(); // by the figure's id

/**
 * @param {string} id
 * @param {() => Description} description
 */
export const describeFigure = (id, description) => descriptions.set(id, description);

const LEGEND_WIDTH = 240;

/**
 * The figure that is written to a file: the one on the page, and around it what the page says elsewhere.
 * @param {string} id
 */
export function fileFigure(id) {
  const node = byId(id);
  const colours = theme();
  const { title, legend } = descriptions.get(id)?.() ?? { title: "", legend: [] };
  const model = byId("subtitle").textContent;
  const source = `Source: report \u201c${document.title}\u201d of ${find("meta[name=generator]").content}, ${byId("written").textContent}`;
  const keys = legend.map(({ name, colour, symbol, dash }) => ({
    type: "scatter",
    mode: symbol ? "lines+markers" : "lines",
    x: [null],
    y: [null],
    name: plain(name),
    showlegend: true,
    hoverinfo: "skip",
    line: { color: colour, width: 2, dash: dash ?? "solid" },
    marker: { color: colour, symbol, size: 9, line: { color: colour, width: symbol?.endsWith("-open") ? 2 : 0 } },
  }));
  const { margin, height, annotations = [] } = node.layout;
  const room = { top: 56, bottom: 30 };
  const layout = {
    ...node.layout,
    autosize: false,
    width: Math.max(node.clientWidth, 720) + (keys.length ? LEGEND_WIDTH : 0),
    height: height + room.top + room.bottom,
    margin: { ...margin, t: margin.t + room.top, b: margin.b + room.bottom, r: keys.length ? LEGEND_WIDTH : margin.r },
    title: {
      text: `<b>${plain(document.title)}</b>: ${plain(title)}<br><span style="font-size:12px">${plain(model)}</span>`,
      x: 0,
      xref: "paper",
      xanchor: "left",
      y: 1 - 14 / (height + room.top + room.bottom),
      yref: "container",
      yanchor: "top",
      font: { size: 16, color: colours.ink },
    },
    showlegend: keys.length > 0,
    legend: { x: 1.02, xanchor: "left", y: 1, yanchor: "top", font: { size: 12, color: colours.ink } },
    annotations: [
      ...annotations,
      {
        text: plain(source),
        xref: "paper",
        yref: "paper",
        x: 0,
        y: 0,
        xanchor: "left",
        yanchor: "top",
        yshift: -margin.b - 4,
        showarrow: false,
        font: { size: 11, color: colours.muted },
      },
    ],
  };
  return { data: [...node.data.map((trace) => ({ ...trace, showlegend: false })), ...keys], layout };
}

/**
 * @param {string} id
 * @param {string} format svg or png
 */
export async function downloadFigure(id, format) {
  const node = byId(id);
  if (!node?.data) return;
  const { data, layout } = fileFigure(id);
  const { width, height } = layout;
  const url = await plotly().toImage({ data, layout }, { format, width, height, scale: format === "png" ? 2 : 1 });
  el("a", { href: url, download: `${id.replace(/-figure$/, "")}.${format}` }).click();
}
