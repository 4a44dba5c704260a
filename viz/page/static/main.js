// The page: follows the run, and puts the curves, the open document and the tabs together.

import { ask, Away, included, isReport, made, Refusal } from "./api.js";
import { drawChart } from "./chart.js";
import { compare } from "./compare.js";
import { button, byId, el, plainly } from "./elements.js";
import { moment } from "./format.js";
import { events, search, spikes } from "./lists.js";
import { probes } from "./probes.js";
import { closeReader, readDocument } from "./reader.js";
import { samples } from "./samples.js";
import { bindSettings } from "./settings.js";
import { sources } from "./sources.js";
import { sayFailure, sayRun } from "./state.js";

const TABS = [spikes, sources, samples, probes, events, compare, search];
const POLL = 1000; // milliseconds
const TAB_REST = 6000; // between two new looks of a tab, while the run goes on

const page = {
  run: null, series: null, kinds: [], view: null, window: 200, logSteps: false, logLoss: false, selected: null, selectedLoss: null,
  other: null, overlay: null, tab: spikes, tabs: {}, drawnTab: 0, asked: null, shown: "", included, opening: 0, cameFrom: null,
};

const fail = (error) => error.name !== "AbortError" && sayFailure(error, page.run);

// ---- following the run

async function follow() {
  try {
    page.run = await ask("run");
    sayRun(page.run);
    const now = `${page.run.edition} ${page.run.steps} ${page.run.state}`;
    if (page.shown !== now) {
      await goOn(page.shown.split(" ")[0] !== `${page.run.edition}`);
      page.shown = now; // not before: what failed on the way is tried again
    }
  } catch (error) {
    fail(error);
  }
  if (!isReport) setTimeout(follow, document.hidden ? 4 * POLL : POLL);
}

// There are new steps, or it is another run: then nothing of before holds.
async function goOn(isOther) {
  if (isOther) {
    Object.assign(page, { view: null, series: null, other: null, overlay: null, selectedLoss: null });
    for (const tab of TABS) tab.forget?.();
  }
  page.kinds = (await ask("events", { limit: 1 })).kinds;
  const isDone = page.series && page.view && page.view[1] <= page.series.steps; // the steps that are shown stay as they are
  await (isDone ? draw() : load());
  if (isOther) {
    await showTab();
    if (page.selected !== null && page.shown && page.selected >= page.run.steps) open(null); // it was of another run
    else if (page.selected !== null) await select(page.selected);
  } else {
    if (page.selected !== null && document.querySelector('#reader:not([aria-busy]) [aria-keyshortcuts="ArrowRight"]:disabled')) await readDocument(page.selected, open, true);
    if (page.tab !== search && page.tab !== compare && Date.now() - page.drawnTab > TAB_REST && !isBusy(byId("panel"))) await showTab();
  }
}

// Somebody is choosing or reading there: what they look at stays.
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

// The average of another run is laid over; null: of none.
function lay(other) {
  page.other = other;
  load().catch(fail);
}

// ---- zoom

const whole = () => [page.run?.first_step ?? 0, Math.max(page.run?.steps ?? 1, (page.run?.first_step ?? 0) + 1)];

function look(view) {
  page.view = view;
  load().catch(fail);
}

function zoom(from, to) {
  const [first, last] = whole();
  const width = Math.max(to - from, 4);
  const low = Math.max(first, Math.min(from, last - width)), high = Math.min(low + width, last);
  look(low <= first && high >= last ? null : [Math.floor(low), Math.ceil(high)]);
}

// The part shown, made so many times as wide around its middle, and moved by a share of itself.
function turn(factor, share) {
  const [from, to] = page.view ?? whole();
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
    // A second click may follow, to see all again: only where there is more to see is it waited for.
    page.opening = setTimeout(() => open(Math.min(step, page.run.steps - 1)), page.view ? 280 : 0);
  });
  chart.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    if (from === undefined || to === undefined) return;
    const at = (value) => (page.logSteps ? 10 ** value : value);
    zoom(at(from), at(to));
  });
  chart.on("plotly_doubleclick", () => { clearTimeout(page.opening); look(null); });
}

// ---- the open document, and the link to it

// `inPassing`: by way of another one, to which one need not come back.
function open(step, inPassing = false) {
  if (step === undefined) return;
  if (step === null) {
    page.selected = page.selectedLoss = null;
    history.replaceState(null, "", location.pathname + location.search);
    closeReader();
    draw();
    if (page.cameFrom?.element.isConnected) page.cameFrom.element.focus({ preventScroll: true });
    if (page.cameFrom) scrollTo({ top: page.cameFrom.top });
    return;
  }
  const target = `#step=${step}`;
  if (location.hash !== target) history[inPassing ? "replaceState" : "pushState"](null, "", target);
  select(step).catch(fail);
}

async function select(step) {
  const wasClosed = page.selected === null;
  if (wasClosed) page.cameFrom = { element: document.activeElement, top: scrollY };
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
    byId("go-words").textContent = location.hash ? "the address names no step" : "";
    if (page.selected !== null) open(null);
  }
}

// ---- tabs

const CONTROLS = "button, input, select, summary, [tabindex]";

async function showTab() {
  page.drawnTab = Date.now();
  const panel = byId("panel"), tab = page.tab;
  panel.setAttribute("aria-labelledby", `tab-${tab.name}`);
  // Each tab has its own element: an answer that comes late is written where nobody looks.
  const own = (page.tabs[tab.name] ??= el("div"));
  if (own.parentNode !== panel) panel.replaceChildren(own);
  if (!page.run) return;
  const focused = [...own.querySelectorAll(CONTROLS)].indexOf(document.activeElement);
  const scrolled = [...own.querySelectorAll(".cards")].map((cards) => cards.scrollLeft);
  try {
    await tab.show(own, { run: page.run, window: page.window, logSteps: page.logSteps, open, isReport, again: showTab, lay });
    if (page.tab === tab) panel.dataset.ready = tab.name;
  } catch (error) {
    if (error instanceof Refusal && !error.state) own.replaceChildren(el("p", { class: "empty" }, plainly(error.message)));
    else fail(error);
    if (error instanceof Away && !own.children.length) own.replaceChildren(el("p", { class: "empty" }, "The server does not answer."));
  }
  // What had the focus was made anew: its successor has it, and what was scrolled is where it was.
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
  bindSettings(page, { draw, load: () => load().catch(fail), showTab, look, turn, open, toSearch, isReport });
  chooseTab(spikes);
  await drawChart(byId("chart"), { ...page, series: { lanes: {}, steps: 0, documents: 0 } });
  bindChart();
  addEventListener("popstate", fromAddress);
  addEventListener("hashchange", fromAddress);
  page.selected = stepOf(location.hash); // opened once the run is known
  if (location.hash && page.selected === null) fromAddress();
  if (isReport) byId("hint").textContent = `A report of ${moment(made)}: the ${included.length} documents with a ring can be opened.`;
  await follow();
}

begin();
