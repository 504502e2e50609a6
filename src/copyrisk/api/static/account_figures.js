// An account's figures as they change, its state and its thresholds.
import { makeAsking } from "./asking.js";
import { fill, h } from "./dom.js";
import {
  figure,
  isKnown,
  numberOf,
  owned,
  percent,
  plainPercent,
  reasonWord,
  signed,
  stateMark,
  time,
  usd,
} from "./format.js";
import { ask, pathOf } from "./http.js";
import { live, liveness } from "./live.js";

const FACTS = [
  ["equity, USD", (row) => owned(row.equity_usd)],
  ["balance, USD", (row) => owned(row.balance_usd)],
  ["open P&L, USD", (row) => signed(row.open_pnl_usd)],
  ["free margin, USD", (row) => owned(row.free_margin_usd)],
  ["used margin, USD", (row) => figure(usd(row.used_margin_usd))],
  ["margin level", (row) => (hasNoMargin(row) ? figure("no margin") : figure(percent(row.margin_level_pct)))],
];
const WHY_NOT = {
  absent: "There is no portfolio of this account.",
  stale: "The daemon does not tick: what is known of this account is not of now.",
  unavailable: "The store is away: nothing is known of this account.",
  unknown: "The figures are unknown",
};

/** An account without positions has no margin level; it is not at 0 %. */
const hasNoMargin = (row) =>
  row.state === "known" && numberOf(row.used_margin_executed_usd ?? row.used_margin_usd) === 0;

export function figuresPart(type, id) {
  const account = `${type}:${id}`;
  const asking = makeAsking();
  const thresholds = thresholdsOf(account, () => draw());
  const node = h("div", {});
  let [row, isFollowed] = [null, false];

  function draw() {
    const facts = [
      ["state", row ? standing(row, thresholds.now()) : figure("\u2013")],
      ...FACTS.map(([label, cell]) => [label, row ? cell(row) : figure("\u2013")]),
      ...thresholdFacts(thresholds.now()),
      ["figures of", row ? time(row.valued_ts_ms) : "\u2013"],
    ];
    fill(
      node,
      row === null || row.state === "known" ? null : h("p", { class: "note", text: whyNot(row) }),
      h(
        "dl",
        { class: "facts" },
        facts.map(([label, value]) => h("div", {}, h("dt", { text: label }), h("dd", {}, value))),
      ),
    );
  }

  async function load() {
    thresholds.load();
    const found = await asking.run((signal) => ask(`/api/portfolios/${pathOf(type, id)}`, { signal }));
    if (found === undefined || isFollowed) return;
    row = asStreamed(found);
    draw();
  }

  draw();
  return {
    node,
    asking,
    load,
    draw,
    take(given) {
      isFollowed = true; // what the stream says is newer than any answer
      row = given;
      draw();
    },
    drop() {
      asking.drop();
      thresholds.drop();
    },
  };
}

function whyNot(row) {
  const reasons = row.degraded_fields ?? [];
  if (row.state === "unknown" && reasons.length) return `${WHY_NOT.unknown}: ${reasons.map(reasonWord).join(", ")}.`;
  return WHY_NOT[row.state] ?? String(row.state);
}

/** What `/api/portfolios` answers, in the words of the stream. */
function asStreamed(found) {
  return {
    state: found.state,
    degraded_fields: found.degraded_fields,
    valued_ts_ms: found.valued_ts,
    equity_usd: found.equity,
    balance_usd: found.balance,
    open_pnl_usd: found.open_pnl,
    free_margin_usd: found.free_margin,
    used_margin_usd: found.used_margin,
    used_margin_executed_usd: found.used_margin_executed,
    margin_level_pct: found.margin_level,
  };
}

// ---- state and thresholds

/**
 * The thresholds of an account: as the house's summary says them, if the account is among its closest; otherwise as
 * the account's last warning in the audit trail said them, with its time; null if neither does.
 */
function thresholdsOf(account, changed) {
  const asking = makeAsking(); // whether it fails is nothing to be told: the thresholds are unknown then
  let warned = null;
  return {
    now() {
      const line = liveness() === "live" && live.summary?.closest?.find((one) => one.account === account);
      return line ? { ...line, of_ms: null } : warned;
    },
    async load() {
      const parameters = { account, kind: "warning", limit: 1 };
      const found = await asking.run((signal) => ask("/api/audit", { parameters, signal }));
      const entry = found?.entries?.find((one) => one.account === account);
      if (!isKnown(entry?.said?.figures?.warning_level_pct)) return;
      warned = { ...entry.said.figures, state: null, of_ms: entry.ts_ms };
      changed();
    },
    drop: asking.drop,
  };
}

/** The state's mark; without thresholds it cannot be told. */
function standing(row, given) {
  if (row.state !== "known") return stateMark("unknown");
  if (hasNoMargin(row)) return stateMark("no_margin");
  const level = numberOf(row.margin_level_pct);
  if (!Number.isFinite(level)) return stateMark("unknown");
  if (given?.state) return stateMark(given.state);
  if (given === null)
    return live.summary?.closest ? h("small", { class: "hint", text: "not among the closest" }) : stateMark("unknown");
  const { warning_level_pct: warning, critical_level_pct: critical } = given;
  return stateMark(level <= numberOf(critical) ? "critical" : level <= numberOf(warning) ? "warning" : "healthy");
}

function thresholdFacts(given) {
  const of = (name) =>
    h(
      "span",
      { class: isKnown(given?.[name]) ? null : "unknown" },
      plainPercent(given?.[name]),
      given?.of_ms ? h("small", { class: "hint" }, " as of ", time(given.of_ms)) : null,
    );
  return [
    ["warned at", of("warning_level_pct")],
    ["closed out at", of("critical_level_pct")],
  ];
}
