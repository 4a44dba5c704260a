// The document of a step, opened: what it says, what each token of it cost, where it is from, how it went.

import { ask, Away, included, Refusal } from "./api.js";
import { button, byId, el, empty, shown, table, textBox } from "./elements.js";
import { count, fixed, percent, significant } from "./format.js";
import { key, tokenText, tokenWords } from "./tokens.js";

let asked = null; // the request on its way

const SURPRISES = 12;

export function closeReader() {
  asked?.abort();
  byId("reader").removeAttribute("aria-busy");
  byId("tip").hidden = true;
  byId("reader").replaceChildren(
    el("h2", {}, "No document is open"),
    empty("Click a point of a curve, or a line of the lists below. ", el("kbd", {}, "←"), " and ", el("kbd", {}, "→"), " go to the document before and after, ", el("kbd", {}, "Esc"), " closes it. The address of the page then is a link to it."),
  );
}

// Shows the document of `step` and returns it, if it is there; `open` is called with another step where one is chosen here.
// `again`: it is shown already, and may have got a next one.
export async function readDocument(step, open, again = false) {
  asked?.abort();
  asked = new AbortController();
  const mine = asked;
  const reader = byId("reader");
  if (!again) reader.setAttribute("aria-busy", "true");
  let content, document = null;
  try {
    document = await ask(`documents/${step}`, {}, mine.signal);
    if (included) document = { ...document, previous: included.findLast((one) => one.step < step)?.step ?? null, next: included.find((one) => one.step > step)?.step ?? null };
    content = page(document, open);
  } catch (error) {
    if (error.name === "AbortError" || again) return null;
    if (!(error instanceof Refusal || error instanceof Away)) throw error;
    const why = error instanceof Refusal ? error.message : "The server does not answer: what is shown was read before.";
    content = [head(step, { previous: step ? step - 1 : null, next: null }, open), el("p", { class: "empty" }, `${why}.`.replace("..", "."))];
  }
  if (mine !== asked) return null;
  reader.removeAttribute("aria-busy");
  if (again) {
    reader.querySelector(".steps").replaceWith(head(step, document, open));
    return document;
  }
  const focused = globalThis.document.activeElement, way = reader.contains(focused) && focused.getAttribute("aria-keyshortcuts");
  reader.replaceChildren(...content);
  reader.scrollTop = 0;
  // Who went on by a button goes on from there.
  if (way) (reader.querySelector(`[aria-keyshortcuts="${way}"]:not(:disabled)`) ?? reader).focus();
  byId("tip").hidden = true;
  byId("said").textContent = document ? `Step ${count(step)} is open: loss ${fixed(document.loss, 2)}` : `Step ${count(step)} can't be opened`;
  return document;
}

function head(step, document, open) {
  return el("div", { class: "steps" },
    el("h2", { id: "reader-title" }, `Step ${count(step)}`),
    button("◀ previous", () => open(document.previous, true), { disabled: document.previous === null, "aria-keyshortcuts": "ArrowLeft" }),
    button("next ▶", () => open(document.next, true), { disabled: document.next === null, "aria-keyshortcuts": "ArrowRight" }),
    button("✕", () => open(null), { "aria-label": "Close", "aria-keyshortcuts": "Escape" }));
}

function page(document, open) {
  const parts = [head(document.step, document, open), facts(document)];
  if (document.gone) parts.push(el("p", { class: "empty" }, `${document.gone}.`));
  if (document.texts) {
    parts.push(el("h3", {}, "What the model read, shaded by its loss before it learned from it"), key(), tokenText(document));
    if (document.losses) parts.push(...surprises(document));
  }
  for (const sample of document.samples) parts.push(...written(sample));
  return parts;
}

function facts(document) {
  const found = [];
  const add = (name, ...content) => found.push(el("dt", {}, name), el("dd", {}, ...content));
  add("source", ...shown(document.source || "unknown"));
  add("where", ...shown(document.shard ?? "unknown"), document.row === null ? "" : `, row ${count(document.row)}`);
  const above = document.excess === null ? "" : ` · ${fixed(Math.abs(document.excess), 2)} ${document.excess > 0 ? "above" : "below"} the average of its source then (${fixed(document.usual, 3)})`;
  add("loss", el("b", {}, document.loss === null ? "not finite" : fixed(document.loss, 3)), " nats per token", above);
  add("accuracy", percent(document.accuracy));
  add("read", readWords(document));
  add("gradient norm", significant(document.gradient_norm));
  add("learning rate", significant(document.learning_rate));
  add("judge", ...(document.judged.length ? document.judged.flatMap((words) => [el("span", { class: "bad" }, ...shown(words)), el("br")]).slice(0, -1) : ["nothing odd about this step"]));
  return el("dl", { class: "facts" }, ...found);
}

function readWords(document) {
  if (document.tokens_read === null) return "its tokens are not kept";
  const whole = document.bytes_read !== null && document.bytes_read === document.document_bytes;
  if (document.about_tokens === null) return `${count(document.tokens_read)} tokens`;
  if (whole) return `all of its ${count(document.tokens_read)} tokens (${count(document.document_bytes)} bytes)`;
  return `${count(document.tokens_read)} of about ${count(document.about_tokens)} tokens (${count(document.bytes_read)} of ${count(document.document_bytes)} bytes)`;
}

function surprises(document) {
  const places = document.losses.map((loss, place) => place).filter((place) => document.losses[place] !== null);
  places.sort((a, b) => document.losses[b] - document.losses[a]);
  const rows = (chosen) => chosen.map((place) => [
    [el("span", { class: "given" }, ...shown(document.texts.slice(Math.max(0, place - 6), place).join("").replaceAll("\n", "⏎"))), el("b", { title: tokenWords(document.texts[place], document.losses[place], document.ranks?.[place]) }, ...shown(document.texts[place].replaceAll("\n", "⏎")))],
    fixed(document.losses[place], 2), count(document.ranks?.[place] ?? null),
  ]);
  const heads = [{ name: "token, after what came before it" }, { name: "loss", kind: "number" }, { name: "held likelier", kind: "number" }];
  const every = el("details", {}, el("summary", {}, `All ${count(document.texts.length - 1)} predictions as a table`));
  every.addEventListener("toggle", () => {
    if (every.open && every.children.length === 1) every.append(table(heads, rows(document.losses.map((_, place) => place).slice(1)), "All predictions, in order"));
  });
  return [el("h3", {}, "What surprised it most"), table(heads, rows(places.slice(0, SURPRISES)), "The tokens that surprised most"), every];
}

export const output = (sample) => (sample.error ? el("span", { class: "bad" }, ...shown(`it failed: ${sample.error}`)) : el("b", {}, ...shown(sample.output ?? "")));

// What the model wrote: from the beginning of a document, or to a prompt.
function written(sample) {
  return [
    el("h3", {}, sample.reference === null ? "What it wrote to a prompt" : "What it wrote, before it learned from this document"),
    textBox(el("span", { class: "given" }, ...shown(sample.prompt ?? "")), output(sample)),
    ...(sample.reference === null ? [] : [el("h3", {}, "What the document really says there"), textBox(el("span", { class: "given" }, ...shown(sample.prompt ?? "")), ...shown(sample.reference))]),
  ];
}

// A line of a list that opens a document.
export function lineOf(entry, open) {
  return button(count(entry.step), () => open(entry.step), { class: "link", "aria-label": `Open the document of step ${count(entry.step)}` });
}
