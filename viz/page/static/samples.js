// The tab of what the model wrote: to the documents it was about to learn from, and to prompts that are asked again.

import { ask } from "./api.js";
import { button, el, empty, plainly, shown, textBox } from "./elements.js";
import { count } from "./format.js";
import { output } from "./reader.js";

let place = null; // of the slider; null: at the newest

const MOST_PROMPTS = 10;

export const samples = {
  name: "samples", title: "Samples",
  forget: () => { place = null; },
  async show(panel, { open }) {
    const answer = await ask("samples", { limit: 300 });
    const asked = await Promise.all(answer.prompts.slice(0, MOST_PROMPTS).map((_, number) => ask("samples", { prompt: number, limit: 24 })));
    if (!answer.samples.length && !asked.length) return panel.replaceChildren(empty("The model has not written anything yet (--display-samples N lets it write at each step divisible by N)."));
    const view = el("div", {});
    const last = answer.samples.length - 1;
    const slider = el("input", { type: "range", min: 0, max: Math.max(last, 0), value: Math.min(place ?? last, last), "aria-label": "Which generation, from the first to the newest", style: "width:min(420px,70vw)", oninput: () => { place = Number(slider.value) === last ? null : Number(slider.value); draw(); } });
    const words = el("output", {});
    function draw() {
      const sample = answer.samples[Number(slider.value)];
      if (!sample) return;
      slider.setAttribute("aria-valuetext", `step ${count(sample.step)}`);
      words.replaceChildren("before it learned from step ", button(count(sample.step), () => open(sample.step), { class: "link" }));
      view.replaceChildren(el("div", { class: "columns" },
        el("div", {}, el("h3", {}, "It was given"), textBox(...shown(sample.prompt ?? ""))),
        el("div", {}, el("h3", {}, "It wrote"), textBox(output(sample))),
        el("div", {}, el("h3", {}, "The document says"), textBox(...shown(sample.reference ?? "")))));
    }
    const again = asked.flatMap((one, i) => [
      el("h3", {}, `Asked again and again (${count(one.total)} times): “${plainly(answer.prompts[i].prompt).slice(0, 120)}”`),
      el("div", { class: "cards", tabindex: 0, role: "group", "aria-label": "What it wrote to this prompt, over time" }, ...one.samples.map((sample) => el("div", {}, el("span", { class: "quiet" }, `step ${count(sample.step)}`), textBox(el("span", { class: "given" }, ...shown(sample.prompt ?? "")), output(sample))))),
    ]);
    const spread = answer.total > answer.samples.length ? `; here are ${count(answer.samples.length)} of them, evenly spread` : "";
    panel.replaceChildren(...(answer.samples.length ? [el("div", { class: "tools" }, slider, words, el("span", { class: "quiet" }, `${count(answer.total)} times it went on from the beginning of a document${spread}`)), view] : []), ...again);
    draw();
  },
};
