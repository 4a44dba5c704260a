// The tab of the sources: the average loss of each over time, and its share of the run.

import { ask } from "./api.js";
import { el, empty, table, textNodes } from "./elements.js";
import { count, fixed, percent } from "./format.js";
import { axis, colour, config, dashOf, label, layout, onAxis, sourceColour, stepAxis, swatch } from "./plots.js";

const hidden = new Set();

export const sources = {
  name: "sources", title: "Sources",
  async show(panel, { window, logSteps, again, open }) {
    const answer = await ask("sources", { points: 800, window, scale: logSteps ? "log" : "linear" });
    if (!answer.sources.length) return panel.replaceChildren(empty("No documents yet."));
    const figure = panel.querySelector(".figure") ?? el("div", { class: "figure", role: "img", "aria-label": "Average loss of each source over the steps" });
    // Sources are numbered by their first document, so that each keeps its colour.
    const order = answer.sources.map((one) => one.first_step).sort((a, b) => a - b);
    const numbered = answer.sources.map((one) => [one, order.indexOf(one.first_step)]);
    const rows = numbered.map(([one, place]) => [
      el("label", {}, el("input", { type: "checkbox", checked: !hidden.has(one.source), onchange: (event) => { event.target.checked ? hidden.delete(one.source) : hidden.add(one.source); again(); } }), " ",
        swatch(place), el("span", { class: "name" }, ...textNodes(one.source || "unknown"))),
      fixed(one.average, 3), count(one.documents), [percent(one.share), " ", el("span", { class: "bar wide", style: `width:${Math.round(80 * one.share)}px` })], count(one.tokens), percent(one.share_of_tokens),
    ]);
    const heads = [{ name: "source" }, { name: "average loss", kind: "number" }, { name: "documents", kind: "number" }, { name: "share" }, { name: "predictions", kind: "number wide" }, { name: "share of predictions", kind: "number wide" }];
    panel.replaceChildren(figure, table(heads, rows, "Sources"));
    const traces = numbered.map(([one, place]) => ({
      x: onAxis(one.curve.steps, logSteps), y: one.curve.values, customdata: one.curve.steps, visible: !hidden.has(one.source), mode: one.curve.steps.length === 1 ? "markers" : "lines",
      line: { color: sourceColour(place), width: place ? 1.6 : 2.4, dash: dashOf(place) }, hovertemplate: `${label(one.source || "unknown")}, step %{customdata:,}: %{y:.3f}<extra></extra>`,
    }));
    await Plotly.react(figure, traces, layout({ xaxis: stepAxis(logSteps), yaxis: axis({ title: { text: "loss, nats per token", font: { color: colour("quiet") } } }), dragmode: false }), config);
    figure.removeAllListeners?.("plotly_click");
    figure.on?.("plotly_click", (event) => open(event.points[0].customdata));
  },
};
