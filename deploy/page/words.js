// Numbers and times as a person reads them. No DOM, no network.

export const NONE = "–";
const MINUS = "−";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Three significant digits or so, without a tail of zeros; large ones with separators. */
export function number(value) {
  if (!isNumber(value)) return NONE;
  const size = Math.abs(value);
  let text;
  if (size >= 1000) text = Math.round(value).toLocaleString("en");
  else if (size >= 100) text = value.toFixed(0);
  else if (size >= 10) text = value.toFixed(1);
  else if (size >= 0.1 || size === 0) text = value.toFixed(2);
  else if (size >= 0.001) text = value.toFixed(3);
  else if (size >= 1e-5) text = value.toExponential(1);
  else text = "≈ 0";
  return text.replaceAll("-", MINUS);
}

/** With so many decimals. */
export const fixed = (value, decimals) =>
  value.toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }).replaceAll("-", MINUS);

/** As it is set: all digits that count, no others. */
export const setting = (value) => (isNumber(value) ? String(Number(value.toPrecision(6))) : NONE);

export const signed = (value) => (isNumber(value) && value > 0 ? `+${number(value)}` : number(value));
export const count = (value) => (isNumber(value) ? value.toLocaleString("en") : NONE);
export const percent = (share) => (isNumber(share) ? `${Math.round(100 * share)} %` : NONE);

/** 4.2 s, 3 min 07 s, 2 h 05 min. */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const two = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

export function bytes(value) {
  if (!isNumber(value)) return NONE;
  return value >= 1e9 ? `${(value / 1e9).toFixed(2)} GB` : `${Math.round(value / 1e6)} MB`;
}

/** Time of day where the reader is. */
export const clock = (iso) => new Date(iso).toLocaleTimeString("en-GB");

export const words = (name) => name.replaceAll("_", " ");
