// The open document: its text with the loss of each token, its origin and its numbers.

import { ask, Away, included, Refusal } from "./api.js";
import { button, byId, el, empty, table, textBox, textNodes } from "./elements.js";
import { count, fixed, percent, significant } from "./format.js";
import { key, tokenText, tokenWords } from "./tokens.js";

let asked = null; // the pending request

const SURPRISES = 12;

export function closeReader() {
  asked?.abort();
  byId("reader").removeAttribute("aria-busy");
  byId("tip").hidden = true;
  byId("reader").replaceChildren(
    el("h2", {}, "No document is open"),
    empty("Click a point of a curve or a row of a list below. ", el("kbd", {}, "←"), " and ", el("kbd", {}, "→"), " open the previous and the next document, ", el("kbd", {}, "Esc"), " closes it. The address of the page is then a link to the document."),
  );
}

// Shows the document of `step` and returns it, or null. Calls `open` with the step of another document chosen here.
// `again`: it is already shown and may have a next document by now.
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
    const why = error instanceof Refusal ? error.message : "The server does not respond, so this document can't be loaded";
    content = [head(step, { previous: step ? step - 1 : null, next: null }, open), el("p", { class: "empty" }, `${why}.`.replace("..", "."))];
  }
  if (mine !== asked) return null;
  reader.removeAttribute("aria-busy");
  if (again) {
    reader.querySelector(".steps").replaceWith(head(step, document, open));
    return document;
  }
  const focused = globalThis.document.activeElement, pressed = reader.contains(focused) && focused.getAttribute("aria-keyshortcuts");
  reader.replaceChildren(...content);
  reader.scrollTop = 0;
  // Keep the focus on the button that was pressed.
  if (pressed) (reader.querySelector(`[aria-keyshortcuts="${pressed}"]:not(:disabled)`) ?? reader).focus();
  byId("tip").hidden = true;
  byId("announcement").textContent = document ? `Opened step ${count(step)}: loss ${fixed(document.loss, 2)}` : `Step ${count(step)} can't be opened`;
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
    parts.push(el("h3", {}, "Text, shaded by the loss of each token before training on it"), key(), tokenText(document));
    if (document.losses) parts.push(...surprises(document));
  }
  for (const sample of document.samples) parts.push(...written(sample));
  return parts;
}

function facts(document) {
  const found = [];
  const add = (name, ...content) => found.push(el("dt", {}, name), el("dd", {}, ...content));
  add("source", ...textNodes(document.source || "unknown"));
  add("location", ...textNodes(document.shard ?? "unknown"), document.row === null ? "" : `, row ${count(document.row)}`);
  const above = document.excess === null ? "" : ` · ${fixed(Math.abs(document.excess), 2)} ${document.excess > 0 ? "above" : "below"} the average of its source at that time (${fixed(document.usual, 3)})`;
  add("loss", el("b", {}, document.loss === null ? "not finite" : fixed(document.loss, 3)), " nats per token", above);
  add("accuracy", percent(document.accuracy));
  add("tokens", readWords(document));
  add("gradient norm", significant(document.gradient_norm));
  add("learning rate", significant(document.learning_rate));
  add("flags", ...(document.judged.length ? document.judged.flatMap((words) => [el("span", { class: "bad" }, ...textNodes(words)), el("br")]).slice(0, -1) : ["none"]));
  return el("dl", { class: "facts" }, ...found);
}

function readWords(document) {
  if (document.tokens_read === null) return "not kept";
  const whole = document.bytes_read !== null && document.bytes_read === document.document_bytes;
  if (document.about_tokens === null) return count(document.tokens_read);
  if (whole) return `all ${count(document.tokens_read)} (${count(document.document_bytes)} bytes)`;
  return `${count(document.tokens_read)} of about ${count(document.about_tokens)} (${count(document.bytes_read)} of ${count(document.document_bytes)} bytes)`;
}

function surprises(document) {
  const places = document.losses.map((loss, place) => place).filter((place) => document.losses[place] !== null);
  places.sort((a, b) => document.losses[b] - document.losses[a]);
  const rows = (chosen) => chosen.map((place) => [
    [el("span", { class: "given" }, ...textNodes(document.texts.slice(Math.max(0, place - 6), place).join("").replaceAll("\n", "⏎"))), el("b", { title: tokenWords(document.texts[place], document.losses[place], document.ranks?.[place]) }, ...textNodes(document.texts[place].replaceAll("\n", "⏎")))],
    fixed(document.losses[place], 2), count(document.ranks?.[place] ?? null),
  ]);
  const heads = [{ name: "token in context" }, { name: "loss", kind: "number" }, { name: "tokens ranked above", kind: "number" }];
  const every = el("details", {}, el("summary", {}, `All ${count(document.texts.length - 1)} predictions as a table`));
  every.addEventListener("toggle", () => {
    if (every.open && every.children.length === 1) every.append(table(heads, rows(document.losses.map((_, place) => place).slice(1)), "All predictions, in order"));
  });
  return [el("h3", {}, "Highest-loss tokens"), table(heads, rows(places.slice(0, SURPRISES)), "Highest-loss tokens"), every];
}

export const output = (sample) => (sample.error ? el("span", { class: "bad" }, ...textNodes(`generation failed: ${sample.error}`)) : el("b", {}, ...textNodes(sample.output ?? "")));

// Generated text: a continuation of the document's beginning, or of a prompt.
function written(sample) {
  return [
    el("h3", {}, sample.reference === null ? "Generated from a prompt" : "Generated before training on this document"),
    textBox(el("span", { class: "given" }, ...textNodes(sample.prompt ?? "")), output(sample)),
    ...(sample.reference === null ? [] : [el("h3", {}, "Actual continuation"), textBox(el("span", { class: "given" }, ...textNodes(sample.prompt ?? "")), ...textNodes(sample.reference))]),
  ];
}

// A link that opens the document of a list entry.
export function stepLink(entry, open) {
  return button(count(entry.step), () => open(entry.step), { class: "link", "aria-label": `Open the document of step ${count(entry.step)}` });
}
