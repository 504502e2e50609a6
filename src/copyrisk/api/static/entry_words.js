// What an entry of the audit trail says, in words: figures, what is planned, what came of it. Anything may stand there.
import {
  UNKNOWN,
  count,
  duration,
  isKnown,
  lots,
  numberOf,
  percent,
  plainPercent,
  price,
  reasonWord,
  usd,
} from "./format.js";

const MOST_ORDERS = 4;
const MOST_OTHERS = 6;
const OTHER_CHARS = 80;

const listOf = (value) => (Array.isArray(value) ? value.filter((one) => one !== null && typeof one === "object") : []);
const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const ordersOf = (number) => (number === 1 ? "1 order" : `${count(number)} orders`);

/** Reasons that the words of what is said leave no doubt about. */
const IMPLIED = new Set(["level_at_or_below_warning", "level_at_or_below_critical", "done"]);

/** The reason of an entry, and what it says. */
export function whyAndHow(entry) {
  const how = inWords(entry);
  return [how && IMPLIED.has(entry.reason) ? "" : reasonWord(entry.reason), how].filter(Boolean).join(": ");
}

/** Empty if only its JSON tells. */
export function inWords({ kind, cause, said }) {
  if (!isTable(said)) return said === null ? "too long to be shown: copyrisk-run audit show has it" : "";
  if (isKnown(said.part) && isKnown(said.of)) return `part ${count(said.part)} of ${count(said.of)}`;
  const own = Object.hasOwn(OF_KIND, kind) ? OF_KIND[kind](said, cause) : [];
  const told = [...own, levelWords(said.figures), planWords(said.plan), resultWords(said.results)].filter(Boolean);
  return told.length ? told.join("; ") : otherWords(said);
}

function levelWords(figures) {
  if (!isTable(figures)) return "";
  const thresholds = [
    ["warning", figures.warning_level_pct],
    ["critical", figures.critical_level_pct],
  ].filter(([, value]) => isKnown(value));
  const told = thresholds.map(([name, value]) => `${name} ${plainPercent(value)}`).join(", ");
  const level = numberOf(figures.used_margin_usd) === 0 ? "no margin" : `level ${percent(figures.level_pct)}`;
  return `${level}${told ? ` (${told})` : ""}, equity ${usd(figures.equity_usd)} USD`;
}

/** `O1 0.50 lots`; without lots, all of it. */
const lotsOf = (step) => `${step.order_id}${isKnown(step.lots) ? ` ${lots(step.lots)} lots` : ""}`;

function shortened(told) {
  const more = told.length - MOST_ORDERS;
  return more > 0 ? [...told.slice(0, MOST_ORDERS), `and ${count(more)} more`] : told;
}

function planWords(plan) {
  const steps = listOf(plan);
  const [closes, cancels] = [steps.filter((one) => !one.is_cancel), steps.filter((one) => one.is_cancel)];
  const told = [
    ["to close", closes],
    ["to cancel", cancels],
  ].filter(([, some]) => some.length);
  return told.map(([word, some]) => `${word} ${shortened(some.map(lotsOf)).join(", ")}`).join("; ");
}

function resultWords(results) {
  const steps = listOf(results);
  if (!steps.length) return "";
  const one = (step) =>
    [
      `${step.order_id} ${reasonWord(step.result) || UNKNOWN}`,
      isKnown(step.lots) ? ` ${lots(step.lots)} lots` : "",
      isKnown(step.price) ? ` at ${price(step.price)}` : "",
      isKnown(step.result_usd) ? `, result ${usd(step.result_usd)} USD` : "",
    ].join("");
  const told = shortened(steps.map(one)).join("; ");
  const booked = steps.filter((step) => isKnown(step.lots) && isKnown(step.result_usd));
  if (booked.length < 2) return told;
  const sum = (name) => booked.reduce((all, step) => all + numberOf(step[name]), 0);
  const all = Number(sum("lots").toFixed(6));
  return `${ordersOf(booked.length)}, ${lots(all)} lots, result ${usd(sum("result_usd"))} USD: ${told}`;
}

// ---- what only some kinds say

const OF_KIND = {
  cascade: (said) => {
    if (!isKnown(said.done)) return [isKnown(said.followers) ? `${count(said.followers)} followers` : ""];
    const { followers, done, flat, failed } = said;
    return [
      `${count(followers)} followers: ${count(done)} closed, ${count(flat)} had none, ${count(failed)} failed`,
      `${count(said.closed)} copies, ${lots(said.lots)} lots, result ${usd(said.result_usd)} USD`,
      `took ${duration(said.duration_ms)}`,
    ];
  },
  replication: (said) => {
    if (!said.order_id) return [];
    const reasons = isTable(said.followers) ? Object.entries(said.followers) : [];
    const whom = reasons.map(([why, number]) => `${reasonWord(why)} ${count(number)}`);
    return [
      `${said.order_id} ${said.symbol ?? ""} ${reasonWord(said.order_type)} ${lots(said.lots)} lots`,
      ...shortened(whom),
    ];
  },
  brake: (said) =>
    isKnown(said.held)
      ? [
          `${count(said.held)} of ${count(said.accounts)} accounts are held back`,
          `${count(said.turned_unknown)} turned unknown`,
        ]
      : [],
  protection: (said) => [`balance ${usd(said.balance_usd)} USD`, `booked ${usd(said.amount_usd)} USD`],
  operator: (said, cause) => [[cause, said.user ? `by ${said.user}` : ""].filter(Boolean).join(" "), othersOf(said)],
};

const KNOWN = new Set(["user", "accounts", "figures", "plan", "results", "quotes"]);

/** Short texts and numbers, under their own names. */
function othersOf(said) {
  return Object.entries(said)
    .filter(([name, value]) => !KNOWN.has(name) && value !== "" && ["string", "number"].includes(typeof value))
    .slice(0, MOST_OTHERS)
    .map(([name, value]) => `${reasonWord(name)} ${String(value).slice(0, OTHER_CHARS)}`)
    .join(", ");
}

function otherWords(said) {
  const accounts = Array.isArray(said.accounts) ? said.accounts : [];
  const named = accounts.length ? shortened(accounts.map(String)).join(", ") : "";
  return [othersOf(said), named].filter(Boolean).join("; ");
}
