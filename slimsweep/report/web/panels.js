// Small charts: one look for all of them, panels side by side or one above the other.

import { byId } from "./dom.js";
import { plotly } from "./plotly.js";

function smallLayout(colours, extra) {
  const axis = {
    gridcolor: colours.line,
    linecolor: colours.line,
    zeroline: false,
    ticks: "",
    tickfont: { color: colours.muted, size: 12 },
    automargin: true,
    fixedrange: true,
  };
  return {
    axis,
    layout: {
      height: 230,
      margin: { l: 46, r: 10, t: 26, b: 40 },
      paper_bgcolor: colours.back,
      plot_bgcolor: colours.back,
      font: { family: colours.font, size: 12, color: colours.ink },
      showlegend: false,
      dragmode: false,
      hovermode: "closest",
      hoverlabel: { bgcolor: colours.back, bordercolor: colours.muted, font: { color: colours.ink, size: 12 } },
      ...extra,
    },
  };
}

const panelTitle = (text, colours, x, y = 1) => ({
  text,
  xref: "paper",
  yref: "paper",
  x,
  y,
  xanchor: "left",
  yanchor: "bottom",
  yshift: 6,
  showarrow: false,
  font: { color: colours.ink, size: 12.5 },
});
const SMALL_CONFIG = { displayModeBar: false, responsive: true };

/**
 * The height of a figure of panels, in CSS pixels: also what is kept free for one that is drawn later.
 * @param {number} panels
 * @param {boolean} narrow
 */
export const panelsHeight = (panels, narrow) => (narrow ? 210 * panels : 250);

// Panels side by side, or one above the other where there is no room.
// `xtitle` is one for all of them, or a list.
export function drawPanels(id, traces, titles, narrow, colours, xtitle, { shapes = [], fromZero = [], stacked = false } = {}) {
  const { axis, layout } = smallLayout(colours, {
    height: panelsHeight(titles.length, narrow),
    bargap: 0,
    shapes,
    ...(stacked ? { barmode: "stack" } : {}),
  });
  const gap = narrow ? 0.13 : 0.075;
  const size = (1 - gap * (titles.length - 1)) / titles.length;
  // Plotly would put a tick at half an epoch where there are few.
  const whole = xtitle === "epoch" && Math.max(...traces.flatMap((t) => t.x)) <= 8 ? { tick0: 0, dtick: 1 } : {};
  layout.annotations = [];
  for (const [n, text] of titles.entries()) {
    const suffix = n ? n + 1 : "";
    const from = n * (size + gap);
    const across = narrow ? [0, 1] : [from, from + size];
    const down = narrow ? [1 - from - size, 1 - from] : [0, 1];
    layout[`xaxis${suffix}`] = {
      ...axis,
      ...whole,
      domain: across,
      anchor: `y${suffix}`,
      title:
        narrow && n < titles.length - 1 && !Array.isArray(xtitle)
          ? undefined
          : { text: Array.isArray(xtitle) ? xtitle[n] : xtitle, font: { size: 12, color: colours.muted }, standoff: 4 },
    };
    layout[`yaxis${suffix}`] = {
      ...axis,
      domain: down,
      anchor: `x${suffix}`,
      rangemode: fromZero.includes(n) ? "tozero" : "normal",
    };
    layout.annotations.push(panelTitle(text, colours, across[0], down[1]));
  }
  plotly().newPlot(byId(id), traces, layout, SMALL_CONFIG);
}
