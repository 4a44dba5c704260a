// Where the data come from: the server or, in a report, the page itself.

const packed = document.getElementById("answers");
const answers = packed ? JSON.parse(packed.textContent) : null;

export const isReport = answers !== null;
export const made = answers?.made; // when the report was created

// The documents that a report contains, in order.
export const included = answers && Object.entries(answers).filter(([key]) => key.startsWith("documents/")).map(([, document]) => document);

export class Refusal extends Error {
  constructor(message, status, state) {
    super(message);
    this.status = status;
    this.state = state;
  }
}

export class Away extends Error {}

const NAMING = ["run", "side", "source", "prompt"]; // the parameters that name an answer in a report

// Raises Refusal if the server returns an error, Away if it does not respond, AbortError if the request was cancelled.
export async function ask(name, parameters = {}, signal = undefined) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined);
  if (isReport) {
    const key = [name, ...NAMING.map((one) => parameters[one]).filter((value) => value !== null && value !== undefined)].join(" ");
    if (key in answers) return answers[key];
    throw new Refusal("Not in this report: it contains only the documents marked with a ring. To read the others, run python -m viz serve", 404);
  }
  let response, answer;
  try {
    response = await fetch(`/api/${name}?${new URLSearchParams(given)}`, { signal });
    answer = await response.json();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Away(error.message);
  }
  if (!response.ok) throw new Refusal(answer.error, response.status, answer.state);
  return answer;
}
