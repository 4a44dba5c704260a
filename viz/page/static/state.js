// The header and the banner: the state of the run, and errors.

import { Away, Refusal } from "./api.js";
import { byId, el, plainText, textNodes } from "./elements.js";
import { capital, count, documents, duration, fixed, percent, significant } from "./format.js";

const GONE = {
  waiting: "This page shows a run as soon as one starts there: python train_slimpajama.py (--out or --viz-dir sets the folder).",
  gone: "The record was deleted or moved. This page shows what it had loaded.",
  unreadable: "The record can't be read.",
};
const STOPPED = "This run stopped without finishing: it was killed, or this is a copy of a run that continued elsewhere.";
const AWAY = "The server does not respond: it was stopped, or the tunnel is closed. This page shows what it had loaded and reconnects automatically.";


const put = (id, words) => { if (byId(id).textContent !== words) byId(id).textContent = words; };

function banner(words) {
  byId("banner").hidden = !words;
  put("banner", words);
}

// Screen readers announce a state when it changes, not at each new document.
function state(name, words = name) {
  if (byId("state").className !== name) put("announcement", `Run: ${name}`);
  byId("state").className = name;
  put("state", words);
}

export function showFailure(error, run) {
  if (error instanceof Away) {
    state("no server");
    return banner(run ? `${AWAY} To restart the server: python -m viz serve ${plainText(run.folder)} --port ${location.port}` : AWAY);
  }
  if (!(error instanceof Refusal)) {
    console.error(error);
    return banner(`This page has a bug (${error.message}). Please report it.`);
  }
  if (!Object.hasOwn(GONE, error.state)) return banner(plainText(error.message));
  state(error.state);
  banner(error.state === "waiting" ? `${capital(plainText(error.message))}. ${GONE.waiting}` : `${GONE[error.state]} (${plainText(error.message)})`);
}

export function showRun(run) {
  const about = run.run, [name, noSteps] = run.state.split(", ");
  const model = plainText(about.model || "a run");
  document.title = `${count(run.steps)} · ${model}`;
  put("model", model);
  byId("about").replaceChildren(...textNodes([about.source, about.note, about.run_id && `run ${about.run_id}`].filter(Boolean).join(" · ")));
  const done = run.steps_asked ? `${count(run.steps)} of ${documents(run.steps_asked)}` : documents(run.steps);
  const parts = [name === "ended" ? `ended: ${plainText(about.outcome || "done")}` : name, done, run.seconds_left && `${duration(run.seconds_left)} left`];
  state(name, parts.filter(Boolean).join(" · "));
  byId("verdict").replaceChildren(...textNodes([run.verdict, run.repeats_from !== null && `documents repeat from step ${count(run.repeats_from)}`].filter(Boolean).join(" · ")));
  const { loss, accuracy, throughput, gradient_norm } = run.latest;
  const items = [["loss", fixed(loss, 3)], ["accuracy", percent(accuracy)], ["tokens/s", count(throughput === null ? null : Math.round(throughput))], ["gradient norm", significant(gradient_norm)]];
  byId("latest").replaceChildren(...items.map(([item, value]) => el("div", {}, el("dt", {}, item), el("dd", {}, value))));
  if (name === "stopped") banner(run.resume_command ? `${STOPPED} Resume: ${plainText(run.resume_command)}` : STOPPED);
  else if (noSteps) banner(name === "ended" ? "This run ended before its first step." : "The run has started; its first step is not finished yet.");
  else banner(run.steps - run.first_step === 1 ? "Only one document so far: averages need more." : "");
}
