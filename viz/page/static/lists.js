// The tabs that are lists: spikes and what it knew best, events, search.

import { ask } from "./api.js";
import { el, empty, plainly, shown, table } from "./elements.js";
import { count, documents, fixed, moment, signed } from "./format.js";
import { lineOf } from "./reader.js";

const chosen = { side: "above", source: null }; // null: all of them

export const spikes = {
  name: "spikes", title: "Spikes",
  forget: () => { chosen.source = null; },
  async show(panel, { run, open, isReport, again }) {
    const known = await ask("sources", { points: 10 });
    const answer = await ask("spikes", { side: chosen.side, source: chosen.source, limit: 100 });
    const side = el("select", { "aria-label": "Which end", onchange: (event) => { chosen.side = event.target.value; again(); } },
      el("option", { value: "above", selected: chosen.side === "above" }, "what surprised it most"), el("option", { value: "below", selected: chosen.side === "below" }, "what it knew best"));
    const source = el("select", { "aria-label": "Source", onchange: (event) => { const place = Number(event.target.value); chosen.source = place < 0 ? null : known.sources[place].source; again(); } },
      el("option", { value: -1 }, "all sources"), ...known.sources.map((one, place) => el("option", { value: place, selected: one.source === chosen.source }, plainly(one.source || "unknown"))));
    const rows = answer.documents.map((entry) => [
      lineOf(entry, open), entry.loss === null ? "∞" : signed(entry.excess, 2), entry.loss === null ? "not finite" : fixed(entry.loss, 2), fixed(entry.usual, 2), el("span", { class: "name" }, ...shown(entry.source || "unknown")),
      entry.judged ? el("span", { class: "bad" }, "spike") : "", entry.words === null ? "its text is no longer kept" : [...shown(entry.words)],
    ]);
    panel.replaceChildren(
      el("div", { class: "tools" }, side, isReport ? "" : source, el("span", { class: "quiet" }, `the furthest ${chosen.side} the average of their source just before${answer.from ? `, from step ${count(answer.from)} on (the warm-up is left out)` : ""}`)),
      rows.length ? table([{ name: "step" }, { name: chosen.side, kind: "number" }, { name: "loss", kind: "number" }, { name: "average", kind: "number wide" }, { name: "source" }, { name: "judged" }, { name: "first words", kind: "words" }], rows, "Documents by their distance to the average")
        : empty(run.steps < 40 ? "An average of a source needs 20 documents first." : "No such document yet."));
  },
};

export const events = {
  name: "events", title: "Events",
  async show(panel, { run, open }) {
    const answer = await ask("events", { limit: 500 });
    const kinds = answer.kinds.map((one) => `${one.kind} ${count(one.count)}`).join(" · ");
    // What happens between two documents is an event of the next one, which may not be there (yet).
    const rows = answer.events.map((event) => [event.step < run.steps ? lineOf(event, open) : count(event.step), event.kind, [...shown(event.detail ?? "")], moment(event.time)]);
    panel.replaceChildren(el("p", { class: "quiet" }, kinds), rows.length
      ? table([{ name: "step" }, { name: "kind" }, { name: "what happened" }, { name: "when", kind: "number wide" }], rows, "Events, the newest first")
      : empty("Nothing has happened beside learning: no checkpoint, no stop, no spike."));
  },
};

let searched = "";

export const search = {
  name: "search", title: "Search",
  async show(panel, { open, isReport, again }) {
    if (isReport) return panel.replaceChildren(empty("A report can't search what was trained on: python -m viz serve can."));
    const field = el("input", { type: "search", size: 34, value: searched, "aria-label": "Text", placeholder: "text that it may have seen", maxlength: 500 });
    const found = el("div", { role: "status" });
    panel.replaceChildren(el("form", { class: "tools", role: "search", onsubmit: (event) => { event.preventDefault(); searched = field.value; again(); } }, field, el("button", {}, "Did it ever see this?")), found);
    async function look() {
      if (!searched) return found.replaceChildren(empty("Upper and lower case are the same; only what was read of a document is searched, as far as its text is kept."));
      const asked = searched;
      const answer = await ask("search", { q: asked, limit: 100 });
      if (asked !== searched) return;
      const rows = answer.hits.map((hit) => [lineOf(hit, open), fixed(hit.loss, 2), el("span", { class: "name" }, ...shown(hit.source ?? "")),
        [el("span", { class: "given" }, "…", ...shown(hit.before.replace(/\s+/g, " "))), el("span", { class: "hit" }, ...shown(hit.hit)), el("span", { class: "given" }, ...shown(hit.after.replace(/\s+/g, " ")), "…")]]);
      const isPart = answer.indexed_below < answer.steps && !answer.problem;
      const missing = isPart ? ` (read so far: ${count(answer.indexed_below)} of ${documents(answer.steps)}) …` : "";
      const kept = answer.problem ? "" : ` of the ${documents(answer.searched)} whose text is kept`;
      found.replaceChildren(
        el("p", {}, el("b", {}, answer.problem ? plainly(answer.problem) : answer.total ? `Yes: in ${count(answer.total)}` : isPart ? "Not so far" : "No: in none"), kept, missing, answer.total > answer.hits.length ? `; the first ${count(answer.hits.length)}:` : ""),
        rows.length ? table([{ name: "step" }, { name: "loss", kind: "number" }, { name: "source" }, { name: "" }], rows, "Documents with this text") : "");
      if (isPart && asked === searched && found.isConnected) await look();
    }
    await look();
  },
};
