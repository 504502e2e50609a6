// Figures and times as text. Null, undefined and NaN are unknown, and say so: never 0.
import { h } from "./dom.js";

export const UNKNOWN = "unknown";
const MINUS = "\u2212"; // as wide as the plus, and no hyphen that a line could break at

const GROUPED = new Map();

function grouped(digits) {
  if (!GROUPED.has(digits)) {
    GROUPED.set(
      digits,
      new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }),
    );
  }
  return GROUPED.get(digits);
}

/** The number of a JSON number or decimal text; NaN if it is none. */
export function numberOf(value) {
  if (typeof value === "number") return value;
  return typeof value === "string" && value.trim() !== "" ? Number(value) : NaN;
}

export function isKnown(value) {
  return Number.isFinite(numberOf(value));
}

function told(value, digits, unit = "") {
  const number = numberOf(value);
  if (!Number.isFinite(number)) return UNKNOWN;
  const text = grouped(digits).format(number);
  return (text.startsWith("-") ? (/[1-9]/.test(text) ? MINUS + text.slice(1) : text.slice(1)) : text) + unit;
}

export const count = (value) => told(value, 0);
export const usd = (value) => told(value, 2);
export const usdRounded = (value) => told(value, 0);
export const percent = (value) => told(value, 2, " %");

/** A threshold in percent, without digits that say nothing. */
export const plainPercent = (value) => (isKnown(value) ? `${Number(numberOf(value).toFixed(2))} %` : UNKNOWN);

/** Lots: two digits, more if there are more. */
export function lots(value) {
  const digits = isKnown(value) ? Math.min(6, Math.max(2, digitsOf(numberOf(value)))) : 2;
  return told(value, digits);
}

/** Digits after the point of a number, or of a decimal text, as it is written. */
export function digitsOf(number) {
  const text = String(number);
  return text.includes("e") ? 6 : (text.split(".")[1] ?? "").length;
}

/** A price: as many digits as it has, or as `like` has. */
export function price(value, like = value) {
  if (!isKnown(value)) return UNKNOWN;
  const digits = Math.max(2, Math.min(6, isKnown(like) ? digitsOf(like) : 5));
  return numberOf(value).toFixed(digits);
}

/** Of bid and ask what is written with more digits: 1.3666 beside 1.36651 is 1.36660. */
export function finer({ bid, ask }) {
  return isKnown(ask) && (!isKnown(bid) || digitsOf(Number(ask)) > digitsOf(Number(bid))) ? ask : bid;
}

/** A move in percent with its sign. */
export function move(value) {
  const number = numberOf(value);
  if (!Number.isFinite(number)) return UNKNOWN;
  return `${number > 0 ? "+" : number < 0 ? MINUS : ""}${Math.abs(number).toFixed(2)} %`;
}

/** Milliseconds as a duration that people read; `inf` and texts above all buckets: as it stands. */
export function duration(value) {
  if (value === "inf") return "above all buckets";
  const ms = numberOf(value);
  if (!Number.isFinite(ms)) return UNKNOWN;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.floor((ms % 60_000) / 1000)} s`;
  return `${Math.floor(ms / 3_600_000)} h ${Math.floor((ms % 3_600_000) / 60_000)} min`;
}

const two = (number) => String(number).padStart(2, "0");

/** A time in the browser's zone, UTC on hover; today's without its date. */
export function time(value, { date = "auto" } = {}) {
  const ms = numberOf(value);
  const when = new Date(ms);
  if (!Number.isFinite(ms) || ms <= 0 || Number.isNaN(when.getTime()))
    return h("span", { class: "unknown", text: UNKNOWN });
  const day = `${when.getFullYear()}-${two(when.getMonth() + 1)}-${two(when.getDate())}`;
  const clock = `${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}`;
  const isToday = when.toDateString() === new Date().toDateString();
  const utc = when.toISOString();
  return h("time", {
    datetime: utc,
    title: `${utc.replace("T", " ").replace("Z", "")} UTC`,
    text: date === "auto" && isToday ? clock : `${day} ${clock}`,
  });
}

/** A text, marked if it says that something is unknown. */
export function figure(text, className = "") {
  const unknown = text === UNKNOWN ? " unknown" : "";
  return h("span", { class: `${className}${unknown}`.trim() || null, text });
}

/** An amount, coloured by its sign. */
export function signed(value, as = usd) {
  const number = numberOf(value);
  return figure(as(value), number > 0 ? "up" : number < 0 ? "down" : "");
}

/** An amount that is remarkable only below zero. */
export function owned(value, as = usd) {
  return figure(as(value), numberOf(value) < 0 ? "down" : "");
}

export const STATES = ["healthy", "warning", "critical", "unknown", "no_margin"];
const STATE_WORDS = { no_margin: "no margin" };

export const stateWord = (state) => STATE_WORDS[state] ?? String(state ?? UNKNOWN);

/** A state as a mark of its own shape and its word: never by colour alone. */
export function stateMark(state) {
  const known = STATES.includes(state) ? state : UNKNOWN;
  return h("span", { class: "mark", data: { state: known }, text: stateWord(state) });
}

export const TYPES = ["live", "demo", "strategy_provider", "copy_follower"];
const TYPE_WORDS = { strategy_provider: "masters", copy_follower: "followers" };

export const typeWord = (type) => TYPE_WORDS[type] ?? String(type);

/** The page of an account `T:U`. */
export function accountHref(account) {
  const [type, ...rest] = String(account).split(":");
  return `#/account/${encodeURIComponent(type)}/${encodeURIComponent(rest.join(":"))}`;
}

export function accountLink(account) {
  const text = String(account ?? "");
  return text.includes(":") ? h("a", { href: accountHref(text), text }) : h("span", { text: text || "\u2013" });
}

/** A compact word for a reason code. */
export const reasonWord = (code) => String(code ?? "").replaceAll("_", " ");
