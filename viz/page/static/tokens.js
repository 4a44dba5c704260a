// A text token by token, shaded by loss, with a tooltip for each token.

import { byId, el, plainText, textNodes } from "./elements.js";
import { count, fixed, signed } from "./format.js";

const EDGES = [0.1, 0.5, 1, 2, 3, 4.5, 6, 8]; // nats: lower edges of the shades

const shade = (loss) => (loss === null || loss === undefined ? "" : `l${EDGES.filter((edge) => loss >= edge).length}`);

export function key() {
  return el("p", { class: "key", "aria-label": "Shades by loss, nats" }, "nats:", ...EDGES.map((edge) => el("span", { class: shade(edge) }, `${edge}${edge === 8 ? "+" : ""}`)));
}

// The tooltip of a token.
export function tokenWords(text, loss, rank) {
  const quoted = `“${plainText(text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")) || "(part of a character)"}”`;
  if (loss === undefined) return `${quoted}  first token, not predicted`;
  const cost = loss === null ? "loss not finite" : `loss ${fixed(loss, 2)}`;
  return `${quoted}  ${cost}${rank === null || rank === undefined ? "" : rank === 0 ? ", ranked first" : `, ${count(rank)} ${rank === 1 ? "token" : "tokens"} ranked above it`}`;
}

export function tokenText({ texts, losses, ranks }) {
  return textOf(texts, "Text of the document", (place) => ({
    look: losses && place ? shade(losses[place]) || "l8" : "",
    words: losses ? tokenWords(texts[place], place ? losses[place] : undefined, ranks?.[place]) : "loss not kept",
  }));
}

// The same text, shaded by how much lower (blue) or higher (red) the loss of each token is at `later` than at `before`.
export function changedText(texts, before, later) {
  return textOf(texts, "Change of the loss, token by token", (place) => {
    const change = place ? later[place] - before[place] : 0;
    const grade = Math.min(3, Math.floor(Math.abs(change) / 0.5));
    const look = grade === 0 ? "" : change < 0 ? `d${grade}` : ["", "l2", "l4", "l6"][grade];
    return { look, words: place ? `“${plainText(texts[place])}”  ${fixed(before[place], 2)} → ${fixed(later[place], 2)} (${signed(change, 2)})` : "first token, not predicted" };
  });
}

function textOf(texts, name, about) {
  const box = el("div", { class: "text", role: "group", "aria-label": name, dir: "ltr" });
  texts.forEach((text, place) => {
    const { look, words } = about(place);
    box.append(el("span", { class: look, data: { words } }, ...textNodes(text, true)));
  });
  const show = (event) => {
    const token = event.target.closest?.("[data-words]");
    if (token) tip(token, token.dataset.words);
    else byId("tip").hidden = true;
  };
  box.addEventListener("pointerover", show);
  box.addEventListener("click", show);
  box.addEventListener("pointerleave", () => (byId("tip").hidden = true));
  return box;
}

function tip(token, words) {
  const place = byId("tip"), around = token.getClientRects()[0];
  if (!around) return;
  place.replaceChildren(...textNodes(words));
  place.hidden = false;
  const left = Math.min(around.left, innerWidth - place.offsetWidth - 8);
  const above = around.top - place.offsetHeight - 6;
  place.style.left = `${Math.max(4, left) + scrollX}px`;
  place.style.top = `${(above > 4 ? above : around.bottom + 6) + scrollY}px`;
}
