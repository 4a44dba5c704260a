// What the page says of the run as a whole, and of what went wrong.

import { Away, Refusal } from "./api.js";
import { byId, el, plainly, shown } from "./elements.js";
import { count, documents, duration, fixed, percent, significant } from "./format.js";

const GONE = {
  waiting: "This page shows it as soon as it begins; python train_slimpajama.py starts one (--out and --viz-dir say where).",
  gone: "The record is gone: it was deleted or moved away. What is shown was read before.",
  unreadable: "The record can't be read.",
};
const STOPPED = "This run stopped without an end: it was killed, or this is a copy of one that went on elsewhere.";
const AWAY = "The server does not answer: it was stopped, or the tunnel to it is closed. What is shown was read before; this page goes on by itself once the server is there again";

const put = (id, words) => { if (byId(id).textContent !== words) byId(id).textContent = words; };

function banner(words) {
  byId("banner").hidden = !words;
  put("banner", words);
}

// A state is said aloud when it changes, not at each new document.
function state(name, words = name) {
  if (byId("state").className !== name) put("said", `The run: ${name}`);
  byId("state").className = name;
  put("state", words);
}

export function sayFailure(error, run) {
  if (error instanceof Away) {
    state("no server");
    return banner(run ? `${AWAY}: python -m viz serve ${plainly(run.folder)} --port ${location.port}` : `${AWAY}.`);
  }
  if (!(error instanceof Refusal)) {
    console.error(error);
    return banner(`The page failed (${error.message}): please report it.`);
  }
  if (!Object.hasOwn(GONE, error.state)) return banner(plainly(error.message));
  state(error.state);
  banner(error.state === "waiting" ? `There is ${plainly(error.message)}. ${GONE.waiting}` : `${GONE[error.state]} (${plainly(error.message)})`);
}

export function sayRun(run) {
  const about = run.run, [name, noSteps] = run.state.split(", ");
  const model = plainly(about.model || "a run");
  document.title = `${count(run.steps)} · ${model}`;
  put("model", model);
  byId("about").replaceChildren(...shown([about.source, about.note, about.run_id && `run ${about.run_id}`].filter(Boolean).join(" · ")));
  const done = run.steps_asked ? `${count(run.steps)} of ${documents(run.steps_asked)}` : documents(run.steps);
  const parts = [name === "ended" ? `ended: ${plainly(about.outcome || "done")}` : name, done, run.seconds_left && `${duration(run.seconds_left)} left`];
  state(name, parts.filter(Boolean).join(" · "));
  byId("verdict").replaceChildren(...shown([run.verdict, run.repeats_from !== null && `documents repeat from step ${count(run.repeats_from)} on`].filter(Boolean).join(" · ")));
  const { loss, accuracy, throughput, gradient_norm } = run.latest;
  const items = [["loss", fixed(loss, 3)], ["next token right", percent(accuracy)], ["tokens/s", count(throughput === null ? null : Math.round(throughput))], ["gradient norm", significant(gradient_norm)]];
  byId("latest").replaceChildren(...items.map(([item, value]) => el("div", {}, el("dt", {}, item), el("dd", {}, value))));
  if (name === "stopped") banner(run.resume_command ? `${STOPPED} ${plainly(run.resume_command)} goes on with it.` : STOPPED);
  else if (noSteps) banner(name === "ended" ? "This run ended before its first document." : "The run has begun; its first document is not done yet.");
  else banner(run.steps - run.first_step === 1 ? "One document so far: averages need more." : "");
}
