// The overview's part that changes by itself: warnings and closes, cascades, who is closest to his thresholds.
import { h, panel, say } from "./dom.js";
import { kindMark } from "./entries.js";
import { whyAndHow } from "./entry_words.js";
import {
  accountHref,
  accountLink,
  count,
  figure,
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
import { live } from "./live.js";
import { makeTable } from "./table.js";

const SHOWN_NEWS = 9;
const SHOWN_ENDED = 3;

// ---- warnings and closes

/** What happened to whom, and in words why and how. */
function happened({ data }) {
  return h(
    "div",
    { class: "story" },
    h("p", {}, kindMark(data.kind), " ", accountLink(data.account)),
    h("p", { class: "hint", text: whyAndHow(data) || "\u2013" }),
  );
}

export function newsPart() {
  const table = makeTable({
    caption: "Latest warnings and closes",
    id: "news",
    keyOf: (row) => row.key,
    empty: () => (live.hasPast ? "None in the audit trail." : "None since this page was opened."),
    hold: "wait",
    columns: [
      { label: "time", cell: ({ data }) => time(data.ts_ms ?? data.now_ms) },
      { label: "what happened", wide: true, cell: happened },
    ],
  });
  const all = h("a", { href: "#/audit", text: "all of them" });
  const since = h("span", { class: "hint" });
  const aside = h("span", { class: "aside" }, table.held, since, all);
  return {
    node: panel("Warnings and closes", { aside }, table.node),
    draw() {
      say(since, live.hasPast ? "" : "since this page was opened");
      table.update(live.news.slice(0, SHOWN_NEWS));
    },
  };
}

// ---- cascades

/** Followers of whom nothing is open any more: they had copies and have none, or had none. */
const closedOf = (row) => numberOf(row.done) + numberOf(row.flat);

function progress(row) {
  const [ended, all] = [closedOf(row) + (numberOf(row.failed) || 0), numberOf(row.followers)];
  if (!Number.isFinite(ended) || !(all > 0)) return figure("unknown");
  const label = `${count(ended)} of ${count(all)} followers at their end`;
  return h("progress", { max: all, value: Math.min(all, ended), "aria-label": label });
}

export function cascadesPart() {
  const href = (row) => `#/cascade/${encodeURIComponent(row.id)}`;
  const table = makeTable({
    caption: "Cascades in progress, and those that have just ended",
    keyOf: (row) => row.id,
    empty: "No cascade is running.",
    hrefOf: href,
    hold: "append",
    columns: [
      { label: "master", cell: (row) => h("a", { href: href(row), text: `strategy_provider:${row.master}` }) },
      {
        label: "state",
        cell: (row) =>
          row.state === "running"
            ? progress(row)
            : h("span", {}, `${reasonWord(row.state) || "unknown"} `, time(row.started_ms)),
      },
      {
        label: "at their end",
        number: true,
        title: "followers that had copies and have none, or had none",
        cell: (row) => figure(`${count(closedOf(row))} of ${count(row.followers)}`),
      },
      {
        label: "failed",
        number: true,
        cell: (row) => h("span", { class: row.failed > 0 ? "down" : null, text: count(row.failed) }),
      },
    ],
  });
  return {
    node: panel("Cascades", { wide: "figures", aside: table.held }, table.node),
    draw({ cascades }) {
      const of = (isRunning) => cascades.filter((row) => (row.state === "running") === isRunning);
      table.update(cascades && [...of(true), ...of(false).slice(0, SHOWN_ENDED)]);
    },
  };
}

// ---- the accounts closest to their thresholds

function distance(row) {
  const level = numberOf(row.margin_level_pct);
  const next =
    level > numberOf(row.warning_level_pct)
      ? ["warning", numberOf(row.warning_level_pct)]
      : ["critical", numberOf(row.critical_level_pct)];
  if (!Number.isFinite(level) || !Number.isFinite(next[1])) return figure("unknown");
  const points = level - next[1];
  const [text, where] = points >= 0 ? [usd(points), ` to ${next[0]}`] : [`${usd(-points)} below`, ` ${next[0]}`];
  return h("span", { class: points < 0 ? "down" : null }, text, h("span", { class: "lesser", text: where }));
}

export function closestPart() {
  const table = makeTable({
    caption: "Accounts closest to their thresholds",
    id: "closest",
    keyOf: (row) => row.account,
    hrefOf: (row) => accountHref(row.account),
    empty: "No account has a margin level.",
    hold: "append",
    columns: [
      { label: "account", cell: (row) => accountLink(row.account) },
      { label: "state", cell: (row) => stateMark(row.state) },
      { label: "level", number: true, cell: (row) => figure(percent(row.margin_level_pct)) },
      {
        label: "points",
        number: true,
        cell: distance,
        title: "percentage points of margin level to the next threshold",
      },
      {
        label: "warns, closes at",
        number: true,
        lesser: true,
        cell: (row) => `${plainPercent(row.warning_level_pct)}, ${plainPercent(row.critical_level_pct)}`,
      },
      { label: "equity", number: true, cell: (row) => owned(row.equity_usd) },
      { label: "used margin", number: true, lesser: true, cell: (row) => figure(usd(row.used_margin_usd)) },
      { label: "open P&L", number: true, cell: (row) => signed(row.open_pnl_usd) },
    ],
  });
  const aside = h("span", { class: "aside" }, table.held, h("span", { class: "hint", text: "USD" }));
  return {
    node: panel("Closest to their thresholds", { wide: "figures two-thirds", aside }, table.node),
    draw: ({ closest }) => table.update(closest),
  };
}
