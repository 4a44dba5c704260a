// The tab of what the model wrote: to the documents it was about to learn from, and to prompts that are asked again.

import { ask } from "./api.js";
import { button, el, empty, plainly, shown } from "./elements.js";
import { count, documents } from "./format.js";

let place = null; // of the slider; null: at the newest

const box = (...content) => el("div", { class: "text plain", dir: "ltr" }, ...content);
const wrote = (sample) => (sample.error ? el("span", { class: "bad" }, ...shown(`it failed: ${sample.error}`)) : el("b", {}, ...shown(sample.output ?? "")));

export const samples = {
  name: "samples", title: "Samples",
  async show(panel, { open }) {
    const answer = await ask("samples", { limit: 300 });
    const asked = await Promise.all(answer.prompts.map((one) => ask("samples", { prompt: one.prompt, limit: 24 })));
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
        el("div", {}, el("h3", {}, "It was given"), box(...shown(sample.prompt ?? ""))),
        el("div", {}, el("h3", {}, "It wrote"), box(wrote(sample))),
        el("div", {}, el("h3", {}, "The document says"), box(...shown(sample.reference ?? "")))));
    }
    const again = asked.flatMap((one, i) => [
      el("h3", {}, `Asked again and again (${count(one.total)} times): “${plainly(answer.prompts[i].prompt).slice(0, 120)}”`),
      el("div", { class: "cards", tabindex: 0, role: "group", "aria-label": "What it wrote to this prompt, over time" }, ...one.samples.map((sample) => el("div", {}, el("span", { class: "quiet" }, `step ${count(sample.step)}`), box(el("span", { class: "given" }, ...shown(sample.prompt ?? "")), wrote(sample))))),
    ]);
    const spread = answer.total > answer.samples.length ? `; ${count(answer.samples.length)} of ${count(answer.total)}, evenly spread` : "";
    panel.replaceChildren(...(answer.samples.length ? [el("div", { class: "tools" }, slider, words, el("span", { class: "quiet" }, `${documents(answer.total)} went on with${spread}`)), view] : []), ...again);
    draw();
  },
};
