// The curves: five lanes over the steps, and the events below them. Every point is one document.

import { count, fixed, percent, significant } from "./format.js";
import { axis, colour, config, label, layout, onAxis, stepAxis, transparent, withBand } from "./plots.js";

const LANES = [
  { name: "loss", title: "Loss", unit: "nats per token", share: 6, format: ".3f", words: (value) => fixed(value, 3) },
  { name: "accuracy", title: "Next-token accuracy", unit: "share of predictions", share: 2, format: ".1%", words: (value) => percent(value) },
  { name: "throughput", title: "Tokens per second", unit: "including waits for data", share: 2, format: ",.0f", words: (value) => count(Math.round(value)) },
  { name: "learning_rate", title: "Learning rate", unit: "before multipliers", share: 1.3, format: ".3~g", words: significant },
  { name: "gradient_norm", title: "Gradient norm", unit: "before clipping, log axis", share: 2, log: true, format: ".3~g", words: significant },
];
const SYMBOLS = { checkpoint: "triangle-up", resume: "diamond", "roll-back": "triangle-left", spike: "x", "skipped update": "x", retry: "square", "bad row": "cross-thin-open", epoch: "line-ns-open" };
const BAD = ["spike", "skipped update", "roll-back", "retry", "bad row"];
const GAP = 26; // pixels between lanes, for the title of the lower one
const KIND = 16; // pixels per kind of event

const shownEvents = (kinds) => kinds.filter((one) => Object.hasOwn(SYMBOLS, one.kind));

// Draw into `element`. `state` has run, series, kinds, view ([from, to] or null), logSteps, logLoss, selected, overlay.
export function drawChart(element, state) {
  const { series, run } = state;
  const kinds = shownEvents(state.kinds ?? []);
  const narrow = element.clientWidth < 500;
  const margin = { l: !kinds.length ? 50 : narrow ? 72 : 96, r: 10, t: 22, b: 28 };
  const height = element.clientHeight - margin.t - margin.b;
  const eventsHeight = kinds.length ? kinds.length * KIND + GAP : 0;
  const unit = (height - eventsHeight - (LANES.length - 1) * GAP) / LANES.reduce((sum, lane) => sum + lane.share, 0);
  const traces = [], annotations = [], axes = {}, view = state.view ?? [run?.first_step ?? 0, Math.max(series.steps, 2)];
  const x = stepAxis(state.logSteps, Math.log10(Math.max(view[1], 2) / Math.max(view[0], 1)));
  let top = height;
  LANES.forEach((lane, place) => {
    const bottom = top - lane.share * unit;
    const id = place ? `y${place + 1}` : "y";
    const data = series.lanes[lane.name];
    const logarithmic = lane.log || (lane.name === "loss" && state.logLoss);
    axes[`yaxis${place ? place + 1 : ""}`] = axis({
      domain: [Math.max(bottom / height, 0), Math.min(top / height, 1)], anchor: "x", fixedrange: true, nticks: lane.share > 3 ? 7 : 3,
      type: logarithmic ? "log" : "linear", tickformat: lane.name === "accuracy" ? ".0%" : lane.name === "throughput" ? ",d" : "~g",
      ...(lane.name === "loss" && logarithmic ? { tickvals: [0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 20, 50] } : {}),
      ...(data ? rangeOf(data, logarithmic, lane.name) : {}),
    });
    if (data) traces.push(...laneTraces(lane, data, id, state, axes[`yaxis${place ? place + 1 : ""}`].range, logarithmic));
    const newest = data?.average?.values.at(-1) ?? (lane.name === "learning_rate" ? data?.values.at(-1) : null);
    const words = newest === null || newest === undefined ? "" : `  ${coloured("main", lane.words(newest))}`;
    const others = lane.name === "loss" && !narrow ? legend(state) : "";
    annotations.push({
      xref: "paper", yref: "paper", x: 0, y: top / height, xanchor: "left", yanchor: "bottom", showarrow: false, align: "left",
      text: `<b style="color:${colour("ink")}">${lane.title}</b>  ${narrow ? "" : lane.unit}${words}${others}`,
    });
    top = bottom - GAP;
  });
  if (kinds.length) {
    axes[`yaxis${LANES.length + 1}`] = axis({
      domain: [0, Math.max((kinds.length * KIND) / height, 0.001)], anchor: "x", fixedrange: true, range: [-0.6, kinds.length - 0.4],
      tickvals: kinds.map((_, i) => i), ticktext: kinds.map((one) => label(one.kind)), tickfont: { size: narrow ? 9 : 10.5 }, showgrid: false,
    });
    kinds.forEach((one, i) => traces.push({
      x: onAxis(one.steps, state.logSteps), y: one.steps.map(() => i), customdata: one.steps, mode: "markers", yaxis: `y${LANES.length + 1}`,
      marker: { symbol: SYMBOLS[one.kind], size: 7, color: BAD.includes(one.kind) ? colour("bad") : colour("quiet") },
      hovertemplate: `${label(one.kind)} at step %{customdata:,}<extra></extra>`,
    }));
  }
  const shapes = [];
  if (run?.run.vocab_size && series.lanes.loss) {
    const guess = Math.log(run.run.vocab_size);
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: guess, y1: guess, line: { color: colour("quiet"), width: 1, dash: "dot" } });
  }
  if (state.selected !== null && state.selected !== undefined) {
    const at = state.logSteps ? Math.max(state.selected, 1) : state.selected;
    shapes.push({ type: "line", xref: "x", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { color: colour("ink"), width: 1, dash: "2px,3px" } });
  }
  if (state.included && series.lanes.loss) traces.push({
    x: onAxis(state.included.map((one) => one.step), state.logSteps), y: state.included.map((one) => one.loss === null ? null : Math.min(one.loss, heightOf(axes.yaxis.range, state.logLoss))),
    customdata: state.included.map((one) => one.step), mode: "markers", yaxis: "y", marker: { symbol: "circle-open", size: 7, color: colour("second") }, hovertemplate: "step %{customdata:,} (in this report)<extra></extra>",
  });
  if (state.selectedLoss !== null && state.selectedLoss !== undefined && series.lanes.loss) traces.push({
    x: onAxis([state.selected], state.logSteps), y: [Math.min(state.selectedLoss, heightOf(axes.yaxis.range, state.logLoss))], mode: "markers", yaxis: "y", hoverinfo: "skip",
    marker: { symbol: "circle-open", size: 13, color: colour("second"), line: { width: 2.5 } },
  });
  const [from, to] = view;
  x.range = state.logSteps ? [Math.log10(Math.max(from, 1)) - 0.02, Math.log10(Math.max(to, 2)) + 0.01] : [from - (to - from) * 0.004, to + (to - from) * 0.006];
  x.anchor = kinds.length ? `y${LANES.length + 1}` : `y${LANES.length}`;
  element.setAttribute("aria-label", `Curves from step ${count(Math.round(from))} to ${count(Math.round(to))}: final loss ${fixed(series.lanes.loss?.average.values.at(-1), 2)} nats per token`);
  return Plotly.react(element, traces, layout({ margin, xaxis: x, ...axes, annotations, shapes }), config);
}

const coloured = (name, words) => `<span style="color:${colour(name)}">${words}</span>`;

// The legend of what the loss lane shows besides the run's average.
function legend({ series, run, overlay }) {
  const held = (series.evaluations ?? []).at(-1);
  const guess = run?.run.vocab_size ? `dotted: uniform guess ${fixed(Math.log(run.run.vocab_size), 2)}` : "";
  return [held && coloured("held-out", `held-out ${fixed(held.loss, 3)}`), overlay && coloured("second", "other run"), guess].filter(Boolean).map((words) => ` · ${words}`).join("");
}

function laneTraces(lane, data, yaxis, state, range, logarithmic) {
  const main = colour("main"), single = colour("data");
  const x = onAxis(data.steps, state.logSteps);
  const sparse = state.series.documents <= data.steps.length + (data.not_finite?.length ?? 0);
  const high = heightOf(range, logarithmic);
  const traces = [{
    x, y: data.values.map((value) => (value === null ? null : Math.min(value, high))), customdata: data.steps.map((step, i) => [step, data.values[i]]),
    yaxis, mode: sparse && (lane.name === "loss" || data.steps.length < 60) ? "markers" : "lines",
    marker: { size: data.steps.length > 400 ? 3.5 : 5, color: transparent(single, 0.6) },
    line: { width: lane.name === "learning_rate" ? 1.6 : 0.7, color: lane.name === "learning_rate" ? main : transparent(single, 0.5) },
    hovertemplate: `step %{customdata[0]:,}  ${lane.title.toLowerCase()} %{customdata[1]:${lane.format}}<extra></extra>`,
  }];
  const above = data.values.map((value, i) => (value !== null && value > high ? i : -1)).filter((i) => i >= 0);
  const ceiling = [...above.map((i) => [data.steps[i], lane.words(data.values[i])]), ...(data.not_finite ?? []).map((step) => [step, "not finite"])];
  if (ceiling.length) traces.push({
    x: onAxis(ceiling.map(([step]) => step), state.logSteps), y: ceiling.map(() => high), customdata: ceiling, yaxis, mode: "markers", cliponaxis: false,
    marker: { symbol: "triangle-up", size: 9, color: colour("bad") }, hovertemplate: `step %{customdata[0]:,}  ${lane.title.toLowerCase()} %{customdata[1]} (above the visible range)<extra></extra>`,
  });
  if (!data.average) return traces;
  const average = { x: onAxis(data.average.steps, state.logSteps), y: data.average.values };
  if (data.average.error) traces.push(withBand(average.x, average.y, data.average.error.map((error) => (error === null ? null : 2 * error)), { colour: main, yaxis }));
  traces.push({
    ...average, customdata: data.average.steps, yaxis, mode: data.average.steps.length === 1 ? "markers" : "lines", line: { width: 2, color: main }, marker: { size: 6, color: main },
    hoverinfo: "skip",
  });
  if (lane.name === "loss") {
    const held = state.series.evaluations ?? [];
    if (held.length) traces.push({
      x: onAxis(held.map((one) => one.step), state.logSteps), y: held.map((one) => one.loss), customdata: held.map((one) => one.step), yaxis, mode: "lines+markers",
      line: { width: 1, color: colour("held-out") }, marker: { size: 6, color: colour("held-out") }, hovertemplate: "held-out loss after step %{customdata:,}: %{y:.3f}<extra></extra>",
    });
    const overlay = state.overlay?.lanes.loss?.average;
    if (overlay) traces.push({
      x: onAxis(overlay.steps, state.logSteps), y: overlay.values, yaxis, mode: "lines", line: { width: 2, color: colour("second") }, hoverinfo: "skip",
    });
  }
  return traces;
}

const heightOf = (range, logarithmic) => (range ? (logarithmic ? 10 ** range[1] : range[1]) : Infinity);

// The range of a lane: an outlier must not flatten the rest, so it is drawn at the upper edge.
function rangeOf(data, logarithmic, name) {
  const sound = [...data.values, ...(data.average?.values ?? [])].filter((value) => value !== null && (!logarithmic || value > 0)).sort((a, b) => a - b);
  if (!sound.length) return {};
  const at = (share) => sound[Math.min(sound.length - 1, Math.floor(share * sound.length))];
  let low = at(0.002), high = sound.at(-1);
  if (logarithmic) return { range: [Math.log10(at(0.002)) - 0.05, Math.log10(high) + 0.05] };
  const usual = at(0.99);
  if (high > usual + 2 * (usual - at(0.01)) && name !== "learning_rate") high = usual + 0.6 * (usual - at(0.01));
  if (name !== "loss") low = Math.min(low, 0);
  const room = Math.max(high - low, name === "loss" ? 0.5 : 1e-12);
  return { range: [name === "loss" ? low - 0.05 * room : low, low + 1.05 * room] };
}
