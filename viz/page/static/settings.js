// The controls: window of the average, axes, visible range, step, colours, and keyboard shortcuts.

import { byId } from "./elements.js";
import { documents } from "./format.js";

const WINDOWS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
const THEMES = ["auto", "light", "dark"];
const REST = 150; // milliseconds without a further change before it takes effect

function afterRest(act) {
  let waiting = 0;
  return () => {
    clearTimeout(waiting);
    waiting = setTimeout(act, REST);
  };
}

export function bindSettings(page, { draw, load, showTab, setView, pan, open, toSearch, isReport }) {
  const click = (id, act) => byId(id).addEventListener("click", act);
  const slider = byId("window");
  const reload = afterRest(() => { load(); showTab(); });
  const read = () => {
    page.window = WINDOWS[slider.value];
    slider.setAttribute("aria-valuetext", documents(page.window));
    byId("window-words").textContent = documents(page.window);
  };
  read();
  slider.addEventListener("input", () => { read(); reload(); });
  byId("log-steps").addEventListener("change", (event) => { page.logSteps = event.target.checked; reload(); });
  byId("log-loss").addEventListener("change", (event) => { page.logLoss = event.target.checked; draw(); });
  if (isReport) for (const id of ["window", "log-steps"]) byId(id).closest("label").hidden = true;
  click("zoom-in", () => pan(0.5, 0));
  click("zoom-out", () => pan(2, 0));
  click("earlier", () => pan(1, -0.5));
  click("later", () => pan(1, 0.5));
  click("zoom-all", () => setView(null));
  byId("go").addEventListener("submit", (event) => {
    event.preventDefault();
    const digits = byId("go-step").value.replace(/[,.\s]/g, "");
    const known = /^\d{1,15}$/.test(digits);
    byId("go-words").textContent = known ? "" : "enter a whole number, 0 or greater";
    if (!known) return;
    open(Number(digits));
    byId("reader").focus(); // so that the arrow keys work on the page again
  });
  byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("reader").focus(); });
  colours(() => { draw(); showTab(); });
  addEventListener("resize", afterRest(load));
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, [role=tab], .cards")) return;
    const way = byId("reader").querySelector(`[aria-keyshortcuts="${CSS.escape(event.key)}"]:not(:disabled)`);
    if (event.key === "/") toSearch();
    else if (way) way.click();
    else return;
    event.preventDefault();
  });
}

function colours(changed) {
  const root = document.documentElement;
  const show = (name) => {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    byId("theme").textContent = `◐ ${name}`;
    byId("theme").setAttribute("aria-label", `Colours: ${name === "auto" ? "system setting" : name}`);
  };
  try {
    const kept = localStorage.getItem("theme");
    if (THEMES.includes(kept)) show(kept);
  } catch { /* no local storage: use the system setting */ }
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
    show(next);
    try {
      localStorage.setItem("theme", next);
    } catch { /* no local storage: not remembered */ }
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}
