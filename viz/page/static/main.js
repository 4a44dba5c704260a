// The page: follows the run and keeps the curves, the open document and the tabs up to date.

import { ask, Away, included, isReport, made, Refusal } from "./api.js";
import { drawChart } from "./chart.js";
import { compare } from "./compare.js";
import { button, byId, el, plainText } from "./elements.js";
import { moment } from "./format.js";
import { events, search, spikes } from "./lists.js";
import { probes } from "./probes.js";
import { closeReader, readDocument } from "./reader.js";
import { samples } from "./samples.js";
import { bindSettings } from "./settings.js";
import { sources } from "./sources.js";
import { showFailure, showRun } from "./state.js";

const TABS = [spikes, sources, samples, probes, events, compare, search];
const POLL = 1000; // milliseconds
const TAB_REST = 6000; // milliseconds between two updates of a tab while the run continues

const page = {
  run: null, series: null, kinds: [], view: null, window: 200, logSteps: false, logLoss: false, selected: null, selectedLoss: null,
  other: null, overlay: null, tab: spikes, tabs: {}, drawnTab: 0, asked: null, shown: "", included, opening: 0, openedFrom: null,
};

const fail = (error) => error.name !== "AbortError" && showFailure(error, page.run);

// ---- following the run

async function follow() {
  try {
    page.run = await ask("run");
    showRun(page.run);
    const now = `${page.run.edition} ${page.run.steps} ${page.run.state}`;
    if (page.shown !== now) {
      await update(page.shown.split(" ")[0] !== `${page.run.edition}`);
      page.shown = now; // only now: a failure before this is retried
    }
  } catch (error) {
    fail(error);
  }
  if (!isReport) setTimeout(follow, document.hidden ? 4 * POLL : POLL);
}

// The run has new steps. With a new edition (another run, or the run went back), everything shown is void.
async function update(isNewEdition) {
  if (isNewEdition) {
    Object.assign(page, { view: null, series: null, other: null, overlay: null, selectedLoss: null });
    for (const tab of TABS) tab.forget?.();
  }
  page.kinds = (await ask("events", { limit: 1 })).kinds;
  const isDone = page.series && page.view && page.view[1] <= page.series.steps; // the visible range has no new steps
  await (isDone ? draw() : load());
  if (isNewEdition) {
    await showTab();
    if (page.selected !== null && page.shown && page.selected >= page.run.steps) open(null); // it belonged to another run
    else if (page.selected !== null) await select(page.selected);
  } else {
    if (page.selected !== null && document.querySelector('#reader:not([aria-busy]) [aria-keyshortcuts="ArrowRight"]:disabled')) await readDocument(page.selected, open, true);
    if (page.tab !== search && page.tab !== compare && Date.now() - page.drawnTab > TAB_REST && !isBusy(byId("panel"))) await showTab();
  }
}

// Don't replace a panel in which the user is typing, choosing or selecting text.
const isBusy = (panel) => panel.contains(document.activeElement) && document.activeElement.matches("input, select") || panel.contains(getSelection().anchorNode) && !getSelection().isCollapsed;

async function load() {
  page.asked?.abort();
  page.asked = new AbortController();
  const { signal } = page.asked;
  const [from, to] = page.view ?? [null, null];
  const wanted = { from, to, points: Math.max(200, byId("chart").clientWidth - 70), window: page.window, scale: page.logSteps ? "log" : "linear" };
  [page.series, page.overlay] = await Promise.all([ask("series", wanted, signal), page.other && ask("series", { ...wanted, run: page.other }, signal)]);
  await draw();
}

async function draw() {
  if (!page.series) return;
  await drawChart(byId("chart"), page);
  byId("chart").dataset.drawn = `${page.series.steps}`;
}

// Overlay the average of another run; null: none.
function overlay(other) {
  page.other = other;
  load().catch(fail);
}

// ---- zoom

const fullRange = () => [page.run?.first_step ?? 0, Math.max(page.run?.steps ?? 1, (page.run?.first_step ?? 0) + 1)];

function setView(view) {
  page.view = view;
  load().catch(fail);
}

function zoom(from, to) {
  const [first, last] = fullRange();
  const width = Math.max(to - from, 4);
  const low = Math.max(first, Math.min(from, last - width)), high = Math.min(low + width, last);
  setView(low <= first && high >= last ? null : [Math.floor(low), Math.ceil(high)]);
}

// Scale the visible range around its middle by `factor`, then move it by `share` of its width.
function pan(factor, share) {
  const [from, to] = page.view ?? fullRange();
  const middle = (from + to) / 2 + share * (to - from), half = ((to - from) * factor) / 2;
  zoom(middle - half, middle + half);
}

function bindChart() {
  const chart = byId("chart");
  chart.on("plotly_click", (event) => {
    const found = event.points.map((point) => point.customdata).find((data) => data !== undefined && data !== null);
    const step = Array.isArray(found) ? found[0] : found;
    if (typeof step !== "number") return;
    clearTimeout(page.opening);
    // Wait for a possible double-click (show everything), but only if the view is zoomed in.
    page.opening = setTimeout(() => open(Math.min(step, page.run.steps - 1)), page.view ? 280 : 0);
  });
  chart.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    if (from === undefined || to === undefined) return;
    const at = (value) => (page.logSteps ? 10 ** value : value);
    zoom(at(from), at(to));
  });
  chart.on("plotly_doubleclick", () => { clearTimeout(page.opening); setView(null); });
}

// ---- the open document, and the link to it

// Open a document, or close it (null). `replace`: don't add a history entry.
function open(step, replace = false) {
  if (step === undefined) return;
  if (step === null) {
    page.selected = page.selectedLoss = null;
    history.replaceState(null, "", location.pathname + location.search);
    closeReader();
    draw();
    if (page.openedFrom?.element.isConnected) page.openedFrom.element.focus({ preventScroll: true });
    if (page.openedFrom) scrollTo({ top: page.openedFrom.top });
    return;
  }
  const target = `#step=${step}`;
  if (location.hash !== target) history[replace ? "replaceState" : "pushState"](null, "", target);
  select(step).catch(fail);
}

async function select(step) {
  const wasClosed = page.selected === null;
  if (wasClosed) page.openedFrom = { element: document.activeElement, top: scrollY };
  page.selected = step;
  page.selectedLoss = null;
  draw();
  const found = await readDocument(step, open);
  if (found && page.selected === step) {
    page.selectedLoss = found.loss;
    draw();
  }
  if (wasClosed && matchMedia("(max-width: 1000px)").matches) byId("reader").scrollIntoView({ block: "start" });
}

function stepOf(address) {
  const found = /^#step=(\d{1,15})$/.exec(address);
  return found && Number(found[1]);
}

function fromAddress() {
  const step = stepOf(location.hash);
  if (step !== null) select(step).catch(fail);
  else {
    byId("go-words").textContent = location.hash ? "the address contains no valid step" : "";
    if (page.selected !== null) open(null);
  }
}

// ---- tabs

const CONTROLS = "button, input, select, summary, [tabindex]";

async function showTab() {
  page.drawnTab = Date.now();
  const panel = byId("panel"), tab = page.tab;
  panel.setAttribute("aria-labelledby", `tab-${tab.name}`);
  // Each tab has its own element, so that a late answer can't overwrite another tab.
  const own = (page.tabs[tab.name] ??= el("div"));
  if (own.parentNode !== panel) panel.replaceChildren(own);
  if (!page.run) return;
  const focused = [...own.querySelectorAll(CONTROLS)].indexOf(document.activeElement);
  const scrolled = [...own.querySelectorAll(".cards")].map((cards) => cards.scrollLeft);
  try {
    await tab.show(own, { run: page.run, window: page.window, logSteps: page.logSteps, open, isReport, again: showTab, overlay });
    if (page.tab === tab) panel.dataset.ready = tab.name;
  } catch (error) {
    if (error instanceof Refusal && !error.state) own.replaceChildren(el("p", { class: "empty" }, plainText(error.message)));
    else fail(error);
    if (error instanceof Away && !own.children.length) own.replaceChildren(el("p", { class: "empty" }, "The server does not respond."));
  }
  // The content was rebuilt: restore the focus and the scroll positions.
  if (focused >= 0 && document.activeElement === document.body) own.querySelectorAll(CONTROLS)[focused]?.focus({ preventScroll: true });
  own.querySelectorAll(".cards").forEach((cards, i) => (cards.scrollLeft = scrolled[i] ?? 0));
}

function chooseTab(tab, focus = false) {
  page.tab = tab;
  for (const one of byId("tabs").children) {
    const mine = one.id === `tab-${tab.name}`;
    one.setAttribute("aria-selected", mine);
    one.tabIndex = mine ? 0 : -1;
    if (mine && focus) one.focus();
  }
  return showTab();
}

function makeTabs() {
  byId("tabs").replaceChildren(...TABS.map((tab) => button(tab.title, () => chooseTab(tab), { role: "tab", id: `tab-${tab.name}`, "aria-controls": "panel", "aria-selected": "false", tabindex: -1 })));
  byId("tabs").addEventListener("keydown", (event) => {
    const place = TABS.indexOf(page.tab), by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) chooseTab(TABS[(place + by + TABS.length) % TABS.length], true);
    else if (event.key === "Home" || event.key === "End") chooseTab(TABS.at(event.key === "Home" ? 0 : -1), true);
    else return;
    event.preventDefault();
  });
}

async function toSearch() {
  await chooseTab(search);
  byId("more").scrollIntoView({ block: "start" });
  byId("panel").querySelector("input")?.focus({ preventScroll: true });
}

async function begin() {
  closeReader();
  makeTabs();
  bindSettings(page, { draw, load: () => load().catch(fail), showTab, setView, pan, open, toSearch, isReport });
  chooseTab(spikes);
  await drawChart(byId("chart"), { ...page, series: { lanes: {}, steps: 0, documents: 0 } });
  bindChart();
  addEventListener("popstate", fromAddress);
  addEventListener("hashchange", fromAddress);
  page.selected = stepOf(location.hash); // opened once the run is loaded
  if (location.hash && page.selected === null) fromAddress();
  if (isReport) byId("hint").textContent = `Report created ${moment(made)}. Only the ${included.length} documents marked with a ring can be opened.`;
  await follow();
}

begin();
