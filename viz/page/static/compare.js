// The tab that compares two runs: the other run's curve as an overlay, and the difference document by document.

import { ask, Refusal } from "./api.js";
import { button, el, empty, plainText, table, textNodes } from "./elements.js";
import { capital, count, documents, fixed, signed } from "./format.js";
import { axis, colour, config, layout, onAxis, stepAxis, transparent, withBand } from "./plots.js";

const chosen = { run: null, answer: null };

export const compare = {
  name: "compare", title: "Compare",
  forget: () => { chosen.run = chosen.answer = null; },
  async show(panel, { logSteps, again, open, overlay, isReport }) {
    const { runs } = await ask("runs");
    const others = runs.filter((run) => !run.is_this);
    if (!others.length) return panel.replaceChildren(empty("There is no other run to compare with. To add one, run ", el("code", {}, "python -m viz serve DIR OTHER"), ". A new run in the same folder keeps the old one, which then appears here."));
    const words = (run) => `${run.folder.split("/").slice(-3).join("/")}  ${run.model}, ${documents(run.documents)}${run.loss === null ? "" : `, loss ${fixed(run.loss, 2)}`}`;
    const choice = el("select", { "aria-label": "Other run" }, ...others.map((run) => el("option", { value: run.run_id, selected: run.run_id === chosen.run }, plainText(words(run)))));
    const tools = el("div", { class: "tools" }, choice, isReport ? "" : button("Compare", () => { chosen.run = choice.value; chosen.answer = null; again(); }));
    if (isReport) chosen.run = others[0].run_id;
    if (chosen.run && !chosen.answer) {
      panel.replaceChildren(tools, empty("Comparing document by document …"));
      try {
        chosen.answer = await ask("compare", { run: chosen.run, points: 700 });
        // Runs that can only be compared in bits per byte can't share an axis in nats per token.
        overlay(chosen.answer.unit === "nats per token" ? chosen.run : null);
      } catch (error) {
        if (!(error instanceof Refusal)) { chosen.run = null; throw error; }
        chosen.answer = { refused: error.message };
      }
    }
    if (chosen.answer && !isReport) tools.append(button("Remove from the curves", () => { chosen.run = chosen.answer = null; overlay(null); again(); }));
    if (!chosen.answer) return panel.replaceChildren(tools, empty("Compares two runs on the documents that both trained on. The difficulty of a document affects both runs alike and cancels out, so small differences become visible."));
    if (chosen.answer.refused) return panel.replaceChildren(tools, empty(plainText(chosen.answer.refused)));
    const answer = chosen.answer;
    const figure = panel.querySelector(".figure") ?? el("div", { class: "figure tall", role: "img" });
    figure.setAttribute("aria-label", answer.sentence);
    const rows = answer.sources.map((one) => [[...textNodes(one.source || "unknown")], one.half_width === null ? signed(one.difference, 4) : `${signed(one.difference, 4)} ± ${fixed(one.half_width, 4)}`, count(one.documents)]);
    panel.replaceChildren(tools, el("p", { class: "sentence" }, plainText(answer.sentence)), el("ul", { class: "notes" }, ...answer.notes.map((note) => el("li", {}, capital(plainText(note))))), figure,
      table([{ name: "source" }, { name: `this run − other run, ${answer.unit}`, kind: "number" }, { name: "documents", kind: "number" }], rows, "Difference by source"));
    await Plotly.react(figure, traces(answer, logSteps), layout({
      margin: { l: 58, r: 12, t: 22, b: 30 }, dragmode: false, xaxis: { ...stepAxis(logSteps), anchor: "y2" },
      yaxis: axis({ domain: [0.56, 1] }), yaxis2: axis({ domain: [0, 0.46], zeroline: true, zerolinecolor: colour("quiet"), range: around(answer) }),
      annotations: [[1, "Loss", `${answer.unit}: <span style="color:${colour("main")}">this run</span>, <span style="color:${colour("second")}">other run</span>`], [0.46, "This run − other run", "above zero: the other run is better"]].map(([y, title, unit]) => ({
        xref: "paper", yref: "paper", x: 0, y, xanchor: "left", yanchor: "bottom", showarrow: false, text: `<b style="color:${colour("ink")}">${title}</b>  ${unit}` })),
    }), config);
    figure.removeAllListeners?.("plotly_click");
    figure.on?.("plotly_click", (event) => event.points[0].customdata !== undefined && open(event.points[0].customdata));
  },
};

function traces(answer, logSteps) {
  const [mine, other] = answer.curves, difference = answer.difference_curve;
  const line = (curve, name, yaxis) => ({ x: onAxis(curve.steps, logSteps), y: curve.values, mode: "lines", line: { width: 2, color: colour(name) }, yaxis, hoverinfo: "skip" });
  return [
    withBand(onAxis(mine.steps, logSteps), mine.values, mine.band, { colour: colour("main"), yaxis: "y" }), withBand(onAxis(other.steps, logSteps), other.values, other.band, { colour: colour("second"), yaxis: "y" }),
    line(mine, "main", "y"), line(other, "second", "y"),
    { x: onAxis(answer.single.steps, logSteps), y: answer.single.values, customdata: answer.single.steps, mode: "markers", yaxis: "y2", marker: { size: 3.5, color: transparent(colour("data"), 0.5) }, hovertemplate: "step %{customdata:,}: %{y:+.3f}<extra></extra>" },
    withBand(onAxis(difference.steps, logSteps), difference.values, difference.band, { colour: colour("ink"), yaxis: "y2" }), line(difference, "ink", "y2"),
  ];
}

function around(answer) {
  const sizes = answer.single.values.filter((value) => value !== null).map(Math.abs).sort((a, b) => a - b);
  const most = Math.max(sizes[Math.floor(0.97 * sizes.length)] ?? 1, ...answer.difference_curve.values.map((value, i) => Math.abs(value ?? 0) + (answer.difference_curve.band[i] ?? 0) / 2));
  return [-1.05 * most, 1.05 * most];
}
