// Shared by all figures: colours of the stylesheet, fonts, axes.

import { plainText } from "./elements.js";

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

export const sourceColour = (place) => colour(`source-${place % 7}`);
const DASHES = ["solid", "6px,2px", "3px,1.5px", "1px,1.2px", "6px,1.5px,1px,1.5px", "10px,2px", "3px,3px"];
export const dashOf = (place) => DASHES[(place + Math.floor(place / 7)) % 7]; // the eighth has the colour of the first, but another dash

// A sample of a source's line, for the table.
export function swatch(place) {
  const [drawing, line] = ["svg", "line"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
  const dash = dashOf(place);
  for (const [key, value] of Object.entries({ x1: 0, x2: 26, y1: 3, y2: 3, stroke: sourceColour(place), "stroke-width": 2.4, ...(dash === "solid" ? {} : { "stroke-dasharray": dash.replaceAll("px", "") }) })) line.setAttribute(key, value);
  drawing.setAttribute("class", "swatch");
  drawing.setAttribute("aria-hidden", "true");
  drawing.append(line);
  return drawing;
}

// Plotly interprets its texts as markup: escape what comes from documents and sources.
export const label = (text) => plainText(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("%{", "%&#123;");

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

export const stepAxis = (logarithmic, decades = 3) =>
  axis(!logarithmic ? { tickformat: ",d", nticks: 9 } : { type: "log", tickformat: ",d", ...(decades > 1.5 ? { dtick: 1 } : { nticks: 9 }) });

// Positions of steps on the axis: on a logarithmic axis, step 0 is drawn at step 1.
export const onAxis = (steps, logarithmic) => (logarithmic ? steps.map((step) => Math.max(step, 1)) : steps);

// A trace for the band around an average, `half` to either side.
export function withBand(x, values, half, look) {
  const low = values.map((value, i) => (half[i] === null ? value : value - half[i]));
  const high = values.map((value, i) => (half[i] === null ? value : value + half[i]));
  return {
    x: [...x, ...[...x].reverse()], y: [...high, ...low.reverse()], mode: "none", fill: "toself",
    fillcolor: transparent(look.colour, 0.16), hoverinfo: "skip", yaxis: look.yaxis,
  };
}
