// Helpers that build elements. Content of documents only ever becomes text, never markup.

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "class") made.className = value;
    else if (key === "data") Object.assign(made.dataset, value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

// Invisible characters and those that change the text direction, which are shown as their code. Except line end and tab,
// and the two joiners, without which Persian, Hindi and emoji families fall apart.
const ODD = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu;

// Returns text for the page as a list of strings and small elements. With `breaks`, line ends and tabs are marked.
export function textNodes(text, breaks = false) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(ODD)) {
    parts.push(text.slice(from, found.index), oddElement(found[0]));
    from = found.index + found[0].length;
  }
  parts.push(text.slice(from));
  if (!breaks) return parts;
  return parts.flatMap((part) => (typeof part !== "string" ? [part] : part.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t")));
}

function oddElement(character) {
  const code = character.codePointAt(0);
  const number = `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
  return el("span", { class: "odd", title: "invisible character" }, number);
}

// The same as one string, for labels and titles.
export const plainText = (text) => textNodes(text).map((part) => (typeof part === "string" ? part : part.textContent)).join("").replace(/\s+/g, " ");

export const button = (words, act, attributes = {}) => el("button", { type: "button", onclick: act, ...attributes }, words);

export const empty = (...words) => el("p", { class: "empty" }, ...words);

// A box with text of the model or of a document, left to right.
export const textBox = (...content) => el("div", { class: "text plain", dir: "ltr" }, ...content);

// A row of a table. If its first cell is a link, the whole row is clickable.
function tableRow(cells) {
  const line = el("tr", {}, ...cells), opens = line.querySelector("td:first-child > button.link");
  if (!opens) return line;
  line.classList.add("opens");
  line.addEventListener("click", (event) => {
    if (!event.target.closest("button, a, input, label") && getSelection().isCollapsed) opens.click();
  });
  return line;
}

// A table. A cell is a string, an element, or a list of these.
export function table(heads, rows, caption) {
  const cell = (tag, content, head) => el(tag, { class: head.kind, scope: tag === "th" ? "col" : null }, ...[content].flat());
  return el("div", { class: "table" }, el("table", { "aria-label": caption },
    el("thead", {}, el("tr", {}, ...heads.map((head) => cell("th", head.name, head)))),
    el("tbody", {}, ...rows.map((row) => tableRow(row.map((content, place) => cell("td", content, heads[place])))))));
}
