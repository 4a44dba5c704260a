// Numbers, durations and dates as text.

const missing = "–";
const whole = new Intl.NumberFormat("en-US");
const known = new Map(); // digits -> format: creating one takes longer than using it a hundred times

const withDigits = (digits) => {
  if (!known.has(digits)) known.set(digits, new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  return known.get(digits);
};

export const count = (value) => (value === null || value === undefined ? missing : whole.format(value));

export const fixed = (value, digits) => (value === null || value === undefined ? missing : withDigits(digits).format(value).replace("-", "−"));

export const signed = (value, digits) => (value === null || value === undefined ? missing : `${value < 0 ? "" : "+"}${fixed(value, digits)}`);

export const percent = (share, digits = 1) => (share === null || share === undefined ? missing : `${fixed(100 * share, digits)} %`);

export const significant = (value) => {
  if (value === null || value === undefined) return missing;
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e6)) return value.toExponential(2).replace("-", "−");
  return Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });
};

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return missing;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${fixed(seconds / 3600, 1)} h` : `${fixed(seconds / 86400, 1)} days`;
}

export const moment = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : missing);

export const documents = (number) => `${count(number)} document${number === 1 ? "" : "s"}`;

export const capital = (words) => words.slice(0, 1).toUpperCase() + words.slice(1);
