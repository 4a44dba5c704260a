// The tab of generated text: for documents just before training on them, and for prompts that are used repeatedly.

import { ask } from "./api.js";
import { button, el, empty, plainText, textBox, textNodes } from "./elements.js";
import { count } from "./format.js";
import { output } from "./reader.js";

let place = null; // of the slider; null: the newest

const MOST_PROMPTS = 10;

export const samples = {
  name: "samples", title: "Samples",
  forget: () => { place = null; },
  async show(panel, { open }) {
    const answer = await ask("samples", { limit: 300 });
    const asked = await Promise.all(answer.prompts.slice(0, MOST_PROMPTS).map((_, number) => ask("samples", { prompt: number, limit: 24 })));
    if (!answer.samples.length && !asked.length) return panel.replaceChildren(empty("No generated text yet. --display-samples N generates text at every step divisible by N."));
    const view = el("div", {});
    const last = answer.samples.length - 1;
    const slider = el("input", { type: "range", min: 0, max: Math.max(last, 0), value: Math.min(place ?? last, last), "aria-label": "Generation, from the first to the newest", style: "width:min(420px,70vw)", oninput: () => { place = Number(slider.value) === last ? null : Number(slider.value); draw(); } });
    const words = el("output", {});
    function draw() {
      const sample = answer.samples[Number(slider.value)];
      if (!sample) return;
      slider.setAttribute("aria-valuetext", `step ${count(sample.step)}`);
      words.replaceChildren("before training on step ", button(count(sample.step), () => open(sample.step), { class: "link" }));
      view.replaceChildren(el("div", { class: "columns" },
        el("div", {}, el("h3", {}, "Prompt"), textBox(...textNodes(sample.prompt ?? ""))),
        el("div", {}, el("h3", {}, "Generated"), textBox(output(sample))),
        el("div", {}, el("h3", {}, "Actual continuation"), textBox(...textNodes(sample.reference ?? "")))));
    }
    const again = asked.flatMap((one, i) => [
      el("h3", {}, `Repeated prompt (${count(one.total)} times): “${plainText(answer.prompts[i].prompt).slice(0, 120)}”`),
      el("div", { class: "cards", tabindex: 0, role: "group", "aria-label": "Continuations of this prompt over time" }, ...one.samples.map((sample) => el("div", {}, el("span", { class: "quiet" }, `step ${count(sample.step)}`), textBox(el("span", { class: "given" }, ...textNodes(sample.prompt ?? "")), output(sample))))),
    ]);
    const spread = answer.total > answer.samples.length ? `; showing ${count(answer.samples.length)}, evenly spaced` : "";
    panel.replaceChildren(...(answer.samples.length ? [el("div", { class: "tools" }, slider, words, el("span", { class: "quiet" }, `${count(answer.total)} continuations of document beginnings${spread}`)), view] : []), ...again);
    draw();
  },
};
