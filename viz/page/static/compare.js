// The tab of the comparison: a second run laid over, and the difference of the two, document by document.

import { ask, Refusal } from "./api.js";
import { button, el, empty, plainly, shown, table } from "./elements.js";
import { count, documents, fixed, signed } from "./format.js";
import { axis, colour, config, layout, onAxis, stepAxis, transparent, withBand } from "./plots.js";

const capital = (words) => words.slice(0, 1).toUpperCase() + words.slice(1);
const chosen = { run: null, answer: null };

export const compare = {
  name: "compare", title: "Compare",
  forget: () => { chosen.run = chosen.answer = null; },
  async show(panel, { logSteps, again, open, lay, isReport }) {
    const { runs } = await ask("runs");
    const others = runs.filter((run) => !run.is_this);
    if (!others.length) return panel.replaceChildren(empty("There is no other run here. ", el("code", {}, "python -m viz serve DIR OTHER"), " brings one along, and so does a new run in the same folder, which keeps the old one."));
    const words = (run) => `${run.folder.split("/").slice(-3).join("/")}  ${run.model}, ${documents(run.documents)}${run.loss === null ? "" : `, loss ${fixed(run.loss, 2)}`}`;
    const choice = el("select", { "aria-label": "The other run" }, ...others.map((run) => el("option", { value: run.run_id, selected: run.run_id === chosen.run }, plainly(words(run)))));
    const tools = el("div", { class: "tools" }, choice, isReport ? "" : button("Compare", () => { chosen.run = choice.value; chosen.answer = null; again(); }));
    if (isReport) chosen.run = others[0].run_id;
    if (chosen.run && !chosen.answer) {
      panel.replaceChildren(tools, empty("Comparing, document by document …"));
      try {
        chosen.answer = await ask("compare", { run: chosen.run, points: 700 });
        // In bits per byte the two can be compared, in nats per token, as the curve of this run has them, they can't.
        lay(chosen.answer.unit === "nats per token" ? chosen.run : null);
      } catch (error) {
        if (!(error instanceof Refusal)) { chosen.run = null; throw error; }
        chosen.answer = { refused: error.message };
      }
    }
    if (chosen.answer && !isReport) tools.append(button("Remove it from the curves", () => { chosen.run = chosen.answer = null; lay(null); again(); }));
    if (!chosen.answer) return panel.replaceChildren(tools, empty("Two runs that read the same documents are held against each other document by document: what makes single documents hard is in both, and cancels."));
    if (chosen.answer.refused) return panel.replaceChildren(tools, empty(plainly(chosen.answer.refused)));
    const answer = chosen.answer;
    const figure = panel.querySelector(".figure") ?? el("div", { class: "figure tall", role: "img" });
    figure.setAttribute("aria-label", answer.sentence);
    const rows = answer.sources.map((one) => [[...shown(one.source || "unknown")], one.half_width === null ? signed(one.difference, 4) : `${signed(one.difference, 4)} ± ${fixed(one.half_width, 4)}`, count(one.documents)]);
    panel.replaceChildren(tools, el("p", { class: "sentence" }, plainly(answer.sentence)), el("ul", { class: "notes" }, ...answer.notes.map((note) => el("li", {}, capital(plainly(note))))), figure,
      table([{ name: "source" }, { name: `this run − the other, ${answer.unit}`, kind: "number" }, { name: "documents", kind: "number" }], rows, "The difference by source"));
    await Plotly.react(figure, traces(answer, logSteps), layout({
      margin: { l: 58, r: 12, t: 22, b: 30 }, dragmode: false, xaxis: { ...stepAxis(logSteps), anchor: "y2" },
      yaxis: axis({ domain: [0.56, 1] }), yaxis2: axis({ domain: [0, 0.46], zeroline: true, zerolinecolor: colour("quiet"), range: around(answer) }),
      annotations: [[1, "Loss", `${answer.unit}: <span style="color:${colour("main")}">this run</span>, <span style="color:${colour("second")}">the other</span>`], [0.46, "This run − the other", "above zero the other is better"]].map(([y, title, unit]) => ({
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
