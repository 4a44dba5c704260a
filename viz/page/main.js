// The page: follows the run, and puts the curves, the open document and the tabs together.

import { ask, isReport, Refusal } from "./api.js";
import { drawChart } from "./chart.js";
import { compare } from "./compare.js";
import { button, byId, el, plainly, shown } from "./elements.js";
import { count, documents, duration, fixed, percent, significant } from "./format.js";
import { events, search, spikes } from "./lists.js";
import { probes } from "./probes.js";
import { closeReader, readDocument } from "./reader.js";
import { samples } from "./samples.js";
import { sources } from "./sources.js";

const TABS = [spikes, sources, samples, probes, events, compare, search];
const WINDOWS = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
const POLL = 1000; // milliseconds
const TAB_REST = 6000; // between two new looks of a tab, while the run goes on

const page = { run: null, series: null, kinds: [], view: null, window: 200, logSteps: false, logLoss: false, selected: null, selectedLoss: null, overlay: null, tab: spikes, drawnTab: 0, asked: null };

// ---- what is shown of the run

async function follow() {
  try {
    const run = await ask("run");
    const before = page.run;
    page.run = run;
    if (before && before.edition !== run.edition) page.view = null;
    say(run);
    if (!before || before.edition !== run.edition || before.steps !== run.steps || before.state !== run.state) {
      await refresh(before);
      if (!before || before.edition !== run.edition) { page.view = null; await showTab(); if (page.selected !== null) await readDocument(page.selected, open); }
      else if (Date.now() - page.drawnTab > TAB_REST && !byId("panel").contains(document.activeElement) && page.tab !== search && page.tab !== compare) await showTab();
    }
  } catch (error) {
    fail(error);
  }
  if (!isReport) setTimeout(follow, document.hidden ? 4 * POLL : POLL);
}

const STATES = {
  waiting: "There is no run here yet. Start one (python train_slimpajama.py --test): this page shows it as soon as it begins.",
  gone: "The record is gone: it was deleted or moved away. What is shown was read before.",
  unreadable: "The record can't be read.",
};

function fail(error) {
  if (error.name === "AbortError") return;
  const known = error instanceof Refusal && STATES[error.state];
  if (!known && !(error instanceof TypeError)) console.error(error);
  const away = "The server does not answer: it was stopped, or the tunnel to it is closed. What is shown was read before; python -m viz serve starts it again, and this page goes on by itself.";
  byId("state").textContent = known ? error.state : error instanceof Refusal ? "a request was refused" : "no server";
  byId("state").className = "";
  banner(known ? `${STATES[error.state]}${error.state === "waiting" ? "" : ` (${plainly(error.message)})`}` : error instanceof Refusal ? plainly(error.message) : away);
}

function banner(words) {
  byId("banner").hidden = !words;
  if (byId("banner").textContent !== words) byId("banner").textContent = words;
}

function say(run) {
  const about = run.run, asked = run.steps_asked;
  const model = plainly(about.model || "a run");
  document.title = `${count(run.steps)} · ${model}`;
  byId("model").textContent = model;
  byId("about").replaceChildren(...shown([about.source, about.note, about.run_id && `run ${about.run_id}`].filter(Boolean).join(" · ")));
  const state = run.state.split(",")[0];
  const done = asked ? `${count(run.steps)} of ${documents(asked)}` : documents(run.steps);
  const left = run.seconds_left ? ` · ${duration(run.seconds_left)} left` : "";
  const ending = state === "ended" ? `ended: ${plainly(about.outcome || "done")} · ` : `${state} · `;
  if (byId("state").textContent !== `${ending}${done}${left}`) byId("state").textContent = `${ending}${done}${left}`;
  byId("state").className = state;
  byId("verdict").textContent = run.verdict;
  const items = [["loss", fixed(run.latest.loss, 3)], ["next token right", percent(run.latest.accuracy)], ["tokens/s", count(run.latest.throughput === null ? null : Math.round(run.latest.throughput))], ["gradient norm", significant(run.latest.gradient_norm)]];
  byId("latest").replaceChildren(...items.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  banner(run.steps === 0 ? "The run has begun; its first document is not done yet."
    : run.steps - run.first_step === 1 ? "One document so far: averages need more."
    : state === "stopped" ? "This run stopped without an end (it was killed, or this is a copy of one that went on elsewhere): python train_slimpajama.py --resume goes on with it." : "");
}

async function refresh(before) {
  const beyond = page.view && before && before.edition === page.run.edition && page.view[1] <= before.steps;
  page.kinds = (await ask("events", { limit: 1 })).kinds;
  if (beyond && page.series) return draw(); // the steps that are shown are done: they stay
  await load();
}

async function load() {
  page.asked?.abort();
  page.asked = new AbortController();
  const { signal } = page.asked;
  const points = Math.max(200, Math.round(byId("chart").clientWidth - 70));
  const [from, to] = page.view ?? [null, null];
  page.series = await ask("series", { from, to: to === null ? null : Math.ceil(to), points, window: page.window, scale: page.logSteps ? "log" : "linear" }, signal);
  await draw();
}

async function draw() {
  if (!page.series || typeof Plotly === "undefined") return;
  await drawChart(byId("chart"), page);
  byId("chart").dataset.drawn = `${page.series.steps}`;
}

// ---- zoom

function whole() {
  return [page.run?.first_step ?? 0, Math.max(page.run?.steps ?? 1, (page.run?.first_step ?? 0) + 1)];
}

function zoom(from, to) {
  const [first, last] = whole();
  const width = Math.max(to - from, 4);
  let low = Math.max(from, first), high = Math.min(low + width, last);
  low = Math.max(first, Math.min(low, high - width));
  page.view = low <= first && high >= last ? null : [Math.floor(low), Math.ceil(high)];
  load().catch(fail);
}

function scaled(factor) {
  const [from, to] = page.view ?? whole();
  const middle = (from + to) / 2, half = ((to - from) * factor) / 2;
  zoom(middle - half, middle + half);
}

function shifted(share) {
  const [from, to] = page.view ?? whole();
  const by = (to - from) * share;
  zoom(from + by, to + by);
}

function bindChart() {
  const chart = byId("chart");
  chart.on("plotly_click", (event) => {
    const found = event.points.map((point) => point.customdata).find((data) => data !== undefined && data !== null);
    const step = Array.isArray(found) ? found[0] : found;
    if (typeof step === "number") open(step);
  });
  chart.on("plotly_relayout", (change) => {
    const from = change["xaxis.range[0]"], to = change["xaxis.range[1]"];
    if (from === undefined || to === undefined) return;
    const at = (value) => (page.logSteps ? 10 ** value : value);
    zoom(at(from), at(to));
  });
  chart.on("plotly_doubleclick", () => { page.view = null; load().catch(fail); });
}

// ---- the open document, and the link to it

function open(step) {
  if (step === undefined) return;
  if (step === null) {
    page.selected = page.selectedLoss = null;
    history.replaceState(null, "", location.pathname + location.search);
    closeReader();
    draw();
    return;
  }
  const target = `#step=${step}`;
  if (location.hash !== target) history.pushState(null, "", target);
  select(step);
}

async function select(step) {
  const wasClosed = page.selected === null;
  page.selected = step;
  page.selectedLoss = null;
  draw();
  const document = await readDocument(step, open);
  if (document && page.selected === step) {
    page.selectedLoss = document.loss;
    draw();
  }
  if (wasClosed && matchMedia("(max-width: 1000px)").matches) byId("reader").scrollIntoView({ block: "start" });
}

function fromAddress() {
  const found = /^#step=(\d{1,15})$/.exec(location.hash);
  if (found) select(Number(found[1]));
  else if (page.selected !== null) open(null);
}

// ---- tabs

async function showTab() {
  page.drawnTab = Date.now();
  const panel = byId("panel"), tab = page.tab;
  panel.setAttribute("aria-labelledby", `tab-${tab.name}`);
  if (panel.dataset.tab !== tab.name) { panel.replaceChildren(); panel.dataset.tab = tab.name; }
  if (!page.run) return;
  try {
    await tab.show(panel, {
      run: page.run, window: page.window, logSteps: page.logSteps, open, isReport, again: showTab,
      lay: (curve) => { page.overlay = curve; draw(); },
    });
    panel.dataset.ready = tab.name;
  } catch (error) {
    if (error instanceof Refusal && !STATES[error.state]) panel.replaceChildren(el("p", { class: "empty" }, plainly(error.message)));
    else fail(error);
  }
}

function chooseTab(tab, focus) {
  page.tab = tab;
  for (const one of byId("tabs").children) {
    const mine = one.id === `tab-${tab.name}`;
    one.setAttribute("aria-selected", mine);
    one.tabIndex = mine ? 0 : -1;
    if (mine && focus) one.focus();
  }
  showTab();
}

// ---- keys, settings

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, [role=tab], .cards")) return;
  const press = (name) => byId("reader").querySelector(`[aria-keyshortcuts="${name}"]:not(:disabled)`)?.click();
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    if (page.selected === null) return;
    event.preventDefault();
    press(event.key);
  } else if (event.key === "Escape") press("Escape");
  else if (event.key === "/") {
    event.preventDefault();
    chooseTab(search, false);
  }
}

function theme(next) {
  const known = ["auto", "light", "dark"];
  let now = "auto";
  try {
    now = localStorage.getItem("theme") ?? "auto";
    if (next) localStorage.setItem("theme", (now = known[(known.indexOf(now) + 1) % 3]));
  } catch { // a browser that keeps nothing
    if (next) now = known[(known.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3];
  }
  if (now === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = now;
  byId("theme").textContent = `◐ ${now}`;
  byId("theme").setAttribute("aria-label", `Colours: ${now === "auto" ? "as the system has them" : now}`);
  draw();
  if (next) showTab();
}

function settings() {
  const slider = byId("window"), words = () => (byId("window-words").textContent = documents(WINDOWS[slider.value]));
  slider.setAttribute("aria-valuetext", documents(page.window));
  words();
  slider.addEventListener("input", () => {
    page.window = WINDOWS[slider.value];
    slider.setAttribute("aria-valuetext", documents(page.window));
    words();
    load().catch(fail);
    if (page.tab === sources) showTab();
  });
  byId("log-steps").addEventListener("change", (event) => { page.logSteps = event.target.checked; load().catch(fail); showTab(); });
  byId("log-loss").addEventListener("change", (event) => { page.logLoss = event.target.checked; draw(); });
  if (isReport) for (const id of ["window", "log-steps"]) byId(id).closest("label").hidden = true;
  byId("zoom-in").addEventListener("click", () => scaled(0.5));
  byId("zoom-out").addEventListener("click", () => scaled(2));
  byId("earlier").addEventListener("click", () => shifted(-0.5));
  byId("later").addEventListener("click", () => shifted(0.5));
  byId("zoom-all").addEventListener("click", () => { page.view = null; load().catch(fail); });
  byId("theme").addEventListener("click", () => theme(true));
  byId("go").addEventListener("submit", (event) => {
    event.preventDefault();
    const digits = byId("go-step").value.replace(/[,.\s]/g, "");
    const known = /^\d{1,15}$/.test(digits);
    byId("go-words").textContent = known ? "" : "a step is a whole number, from 0 on";
    if (known) open(Number(digits));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); showTab(); });
  addEventListener("popstate", fromAddress);
  addEventListener("hashchange", fromAddress);
  addEventListener("keydown", keys);
  let resized = 0;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(() => load().catch(fail), 200); });
}

function makeTabs() {
  byId("tabs").replaceChildren(...TABS.map((tab) => button(tab.title, () => chooseTab(tab, false), { role: "tab", id: `tab-${tab.name}`, "aria-controls": "panel", "aria-selected": "false", tabindex: -1 })));
  byId("tabs").addEventListener("keydown", (event) => {
    const place = TABS.indexOf(page.tab), by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) chooseTab(TABS[(place + by + TABS.length) % TABS.length], true);
    else if (event.key === "Home" || event.key === "End") chooseTab(TABS.at(event.key === "Home" ? 0 : -1), true);
    else return;
    event.preventDefault();
  });
}

async function begin() {
  closeReader();
  makeTabs();
  settings();
  theme(false);
  chooseTab(spikes, false);
  await Plotly.newPlot(byId("chart"), [], {}, { displayModeBar: false });
  bindChart();
  fromAddress();
  await follow();
}

begin();
