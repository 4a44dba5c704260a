// The tabs that are lists: documents far from the average, events, search.

import { ask } from "./api.js";
import { el, empty, plainText, table, textNodes } from "./elements.js";
import { count, documents, fixed, moment, signed } from "./format.js";
import { stepLink } from "./reader.js";

const chosen = { side: "above", source: null }; // null: all sources

export const spikes = {
  name: "spikes", title: "Spikes",
  forget: () => { chosen.source = null; },
  async show(panel, { run, open, isReport, again }) {
    const known = await ask("sources", { points: 10 });
    const answer = await ask("spikes", { side: chosen.side, source: chosen.source, limit: 100 });
    const side = el("select", { "aria-label": "Direction", onchange: (event) => { chosen.side = event.target.value; again(); } },
      el("option", { value: "above", selected: chosen.side === "above" }, "furthest above average"), el("option", { value: "below", selected: chosen.side === "below" }, "furthest below average"));
    const source = el("select", { "aria-label": "Source", onchange: (event) => { const place = Number(event.target.value); chosen.source = place < 0 ? null : known.sources[place].source; again(); } },
      el("option", { value: -1 }, "all sources"), ...known.sources.map((one, place) => el("option", { value: place, selected: one.source === chosen.source }, plainText(one.source || "unknown"))));
    const rows = answer.documents.map((entry) => [
      stepLink(entry, open), entry.loss === null ? "∞" : signed(entry.excess, 2), entry.loss === null ? "not finite" : fixed(entry.loss, 2), fixed(entry.usual, 2), el("span", { class: "name" }, ...textNodes(entry.source || "unknown")),
      entry.judged ? el("span", { class: "bad" }, "spike") : "", entry.words === null ? "text no longer kept" : [...textNodes(entry.words)],
    ]);
    panel.replaceChildren(
      el("div", { class: "tools" }, side, isReport ? "" : source, el("span", { class: "quiet" }, `relative to the source's average just before the document${answer.from ? `; from step ${count(answer.from)}, after the warm-up` : ""}`)),
      rows.length ? table([{ name: "step" }, { name: chosen.side, kind: "number" }, { name: "loss", kind: "number" }, { name: "average", kind: "number wide" }, { name: "source" }, { name: "flagged" }, { name: "first words", kind: "words" }], rows, "Documents by distance from the average")
        : empty(run.steps < 40 ? "No documents yet: the average of a source needs 20 documents first." : "No such documents yet."));
  },
};

export const events = {
  name: "events", title: "Events",
  async show(panel, { run, open }) {
    const answer = await ask("events", { limit: 500 });
    const kinds = answer.kinds.map((one) => `${one.kind} ${count(one.count)}`).join(" · ");
    // An event between two documents has the step of the next one, which may not exist (yet).
    const rows = answer.events.map((event) => [event.step < run.steps ? stepLink(event, open) : count(event.step), event.kind, [...textNodes(event.detail ?? "")], moment(event.time)]);
    panel.replaceChildren(el("p", { class: "quiet" }, kinds), rows.length
      ? table([{ name: "step" }, { name: "kind" }, { name: "details" }, { name: "time", kind: "number wide" }], rows, "Events, newest first")
      : empty("No events yet: no checkpoint, no resume, no spike."));
  },
};

let searched = "";

export const search = {
  name: "search", title: "Search",
  async show(panel, { open, isReport, again }) {
    if (isReport) return panel.replaceChildren(empty("A report can't be searched. To search the documents, run python -m viz serve."));
    const field = el("input", { type: "search", size: 34, value: searched, "aria-label": "Text", placeholder: "text to find in the documents", maxlength: 500 });
    const found = el("div", { role: "status" });
    panel.replaceChildren(el("form", { class: "tools", role: "search", onsubmit: (event) => { event.preventDefault(); searched = field.value; again(); } }, field, el("button", {}, "Search")), found);
    async function find() {
      if (!searched) return found.replaceChildren(empty("Finds the documents that contain a text, ignoring case. Only the part of a document that was trained on is searched, as long as its text is kept."));
      const asked = searched;
      const answer = await ask("search", { q: asked, limit: 100 });
      if (asked !== searched) return;
      const rows = answer.hits.map((hit) => [stepLink(hit, open), fixed(hit.loss, 2), el("span", { class: "name" }, ...textNodes(hit.source ?? "")),
        [el("span", { class: "given" }, "…", ...textNodes(hit.before.replace(/\s+/g, " "))), el("span", { class: "hit" }, ...textNodes(hit.hit)), el("span", { class: "given" }, ...textNodes(hit.after.replace(/\s+/g, " ")), "…")]]);
      const isPart = answer.indexed_below < answer.steps && !answer.problem;
      const missing = isPart ? ` (indexed so far: ${count(answer.indexed_below)} of ${documents(answer.steps)}) …` : "";
      const kept = answer.problem ? "" : ` of the ${documents(answer.searched)} whose text is kept`;
      found.replaceChildren(
        el("p", {}, el("b", {}, answer.problem ? plainText(answer.problem) : answer.total ? `Found in ${count(answer.total)}` : isPart ? "Not found so far in any" : "Not found in any"), kept, missing, answer.total > answer.hits.length ? `; showing the first ${count(answer.hits.length)}:` : ""),
        rows.length ? table([{ name: "step" }, { name: "loss", kind: "number" }, { name: "source" }, { name: "match" }], rows, "Documents with this text") : "");
      if (isPart && asked === searched && found.isConnected) await find();
    }
    await find();
  },
};
