// What all figures share: colours of the stylesheet, fonts, axes.

import { plainly } from "./elements.js";

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export const sourceColour = (place) => colour(`source-${place % 7}`);
export const dashOf = (place) => ["solid", "6px,2px", "3px,1.5px", "1px,1.2px", "6px,1.5px,1px,1.5px", "10px,2px", "3px,3px"][place % 7];

// Plotly reads its texts as markup: what a document or a source says must not be read so.
export const label = (text) => plainly(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

export const transparent = (hex, share) => `${hex}${Math.round(255 * share).toString(16).padStart(2, "0")}`;

export const config = { displayModeBar: false, doubleClick: false, responsive: true, scrollZoom: false, showTips: false };

export function layout(changes = {}) {
  return {
    paper_bgcolor: colour("paper"), plot_bgcolor: colour("paper"), showlegend: false, hovermode: "closest", hoverdistance: 30,
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("quiet") },
    hoverlabel: { bgcolor: colour("ink"), bordercolor: colour("ink"), font: { color: colour("paper"), size: 12.5 } },
    margin: { l: 52, r: 12, t: 18, b: 30 }, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    separators: ".,", ...changes,
  };
}

export function axis(changes = {}) {
  return { gridcolor: colour("rule"), linecolor: colour("rule"), zeroline: false, tickcolor: colour("rule"), automargin: false, ...changes };
}

export const stepAxis = (logarithmic, changes = {}) =>
  axis(logarithmic ? { type: "log", dtick: 1, tickformat: ",d", ...changes } : { tickformat: ",d", nticks: 9, ...changes });

// The average and its band, two standard errors wide, as two traces.
export function withBand(x, values, half, look) {
  const low = values.map((value, i) => (half[i] === null ? value : value - half[i]));
  const high = values.map((value, i) => (half[i] === null ? value : value + half[i]));
  return {
    x: [...x, ...[...x].reverse()], y: [...high, ...low.reverse()], mode: "none", fill: "toself",
    fillcolor: transparent(look.colour, 0.16), hoverinfo: "skip", xaxis: look.xaxis, yaxis: look.yaxis,
  };
}
