// The tab of re-measured documents: their loss before training on them and at increasing distances after.

import { ask } from "./api.js";
import { el, empty, textNodes } from "./elements.js";
import { count, fixed } from "./format.js";
import { axis, colour, config, dashOf, layout, sourceColour, swatch, transparent } from "./plots.js";
import { stepLink } from "./reader.js";
import { changedText } from "./tokens.js";

const chosen = new Map(); // step of a probe -> [moment, moment]

const when = (distance) => (distance === null ? "before training" : distance === 0 ? "right after" : distance === 1 ? "1 document later" : `${count(distance)} documents later`);

export const probes = {
  name: "probes", title: "Learn and forget",
  forget: () => chosen.clear(),
  async show(panel, { open, run, again }) {
    const answer = await ask("probes");
    if (!answer.probes.length) {
      return panel.replaceChildren(empty(run.run.config.probes === false ? "This run does not re-measure documents (--no-probes)." : run.run.config.probes === undefined ? "This run was recorded by a version that did not re-measure documents." : run.state !== "running" ? "No document of this run was re-measured: re-measuring may use 1 % of the time, and the run was too short for that." : "Up to four documents are re-measured 0, 1, 2, 4, 8 … documents after training on them. None has been yet: re-measuring may use at most 1 % of the time so far."));
    }
    const figure = panel.querySelector(".figure") ?? el("div", { class: "figure", role: "img", "aria-label": "Loss of re-measured documents, by how many documents were trained on since" });
    const parts = [];
    for (const probe of answer.probes) {
      const measured = [[null, probe.first], ...probe.measured.map((one) => [one.distance, one.loss])];
      const few = measured.length <= 5 ? measured : [measured[0], measured[1], ...[0.34, 0.67, 1].map((share) => measured[Math.round(1 + share * (measured.length - 2))])];
      const place = answer.probes.indexOf(probe);
      parts.push(el("h3", {}, swatch(place), "Step ", stepLink(probe, open), "  ", ...textNodes(probe.words ?? "text not kept")),
        el("p", {}, ...few.flatMap(([distance, loss], i) => [i ? " → " : "", `${when(distance)} `, el("b", {}, fixed(loss, 2))])),
        await byToken(probe, again));
    }
    panel.replaceChildren(figure, el("p", { class: "quiet" }, "Loss of the same document before and after training on it. Thin lines show the average loss of its source at that time, which falls as the model learns from other documents. A drop larger than that of the thin line was learned from this document; a later rise relative to the thin line is forgetting."), ...parts);
    const ticks = [...new Set(answer.probes.flatMap((probe) => probe.measured.map((one) => one.distance)))].sort((a, b) => a - b);
    const at = (distance) => (distance === null ? -1 : distance === 0 ? 0 : Math.log2(distance) + 1);
    const traces = answer.probes.map((probe, place) => ({
      x: [-1, ...probe.measured.map((one) => at(one.distance))], y: [probe.first, ...probe.measured.map((one) => one.loss)], mode: "lines+markers",
      text: [null, ...probe.measured.map((one) => one.distance)].map(when), line: { color: sourceColour(place), width: 2, dash: dashOf(place) }, marker: { size: 6, symbol: ["circle", "square", "diamond", "triangle-up"][place % 4] },
      hovertemplate: `step ${count(probe.step)}, %{text}: %{y:.3f}<extra></extra>`,
    }));
    answer.probes.forEach((probe, place) => traces.push({
      x: [-1, ...probe.measured.map((one) => at(one.distance))], y: [probe.usual, ...probe.measured.map((one) => one.average)], mode: "lines", hoverinfo: "skip",
      line: { color: transparent(sourceColour(place), 0.45), width: 1, dash: "2px,2px" },
    }));
    const far = Math.max(0, ...ticks.map(at));
    const every = Math.ceil((far + 2) / (figure.clientWidth / 62));
    const shownTicks = ticks.filter((distance) => distance && (Math.log2(distance) % every === 0));
    await Plotly.react(figure, traces, layout({
      dragmode: false, margin: { l: 52, r: 12, t: 12, b: 40 },
      xaxis: axis({ tickvals: [-1, 0, ...shownTicks.map(at)], ticktext: ["before training", "right after", ...shownTicks.map(count)], range: [-1.3, far + 0.6], title: { text: "documents trained on since (log scale)", font: { color: colour("quiet"), size: 11.5 } } }),
      yaxis: axis({ title: { text: "loss, nats per token", font: { color: colour("quiet") } } }),
    }), config);
  },
};

async function byToken(probe, again) {
  const answer = await ask(`probes/${probe.step}`);
  if (!answer.texts || answer.moments.length < 2) return "";
  const last = answer.moments.length - 1;
  const [from, to] = chosen.get(probe.step) ?? [0, last];
  const choice = (value, name, place) => el("select", { "aria-label": name, onchange: (event) => { const pair = [...(chosen.get(probe.step) ?? [from, to])]; pair[place] = Number(event.target.value); chosen.set(probe.step, pair); again(); } },
    ...answer.moments.map((moment, i) => el("option", { value: i, selected: i === value }, when(moment.distance))));
  const details = el("details", { open: chosen.has(probe.step) }, el("summary", {}, "Token by token"),
    el("div", { class: "tools" }, "from", choice(from, "From measurement", 0), "to", choice(to, "To measurement", 1), el("span", { class: "key" }, "lower loss, nats:", el("span", { class: "d1" }, "½"), el("span", { class: "d2" }, "1"), el("span", { class: "d3" }, "1½"), "higher loss, nats:", el("span", { class: "l2" }, "½"), el("span", { class: "l4" }, "1"), el("span", { class: "l6" }, "1½"))),
    changedText(answer.texts, answer.moments[from].losses, answer.moments[to].losses));
  return details;
}
