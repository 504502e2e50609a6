// One cascade, follower by follower.
import { makeAsking } from "./asking.js";
import { fill, h, panel, say } from "./dom.js";
import {
  accountHref,
  accountLink,
  count,
  duration,
  figure,
  lots,
  numberOf,
  reasonWord,
  signed,
  time,
} from "./format.js";
import { ask, pathOf } from "./http.js";
import { makeTable } from "./table.js";

const AGAIN_MS = 2_000;
const PAGE = 500;

export function cascadeView({ rest }) {
  const id = rest[0] ?? "";
  const asking = makeAsking();
  const head = h("dl", { class: "facts" });
  const bar = h("div", {});
  const told = h("p", { class: "hint" });
  const table = makeTable({
    caption: "Followers of this cascade",
    id: "followers",
    keyOf: (row) => row.follower,
    hrefOf: (row) => accountHref(`copy_follower:${row.follower}`),
    empty: "No followers.",
    columns: [
      { label: "follower", cell: (row) => accountLink(`copy_follower:${row.follower}`) },
      {
        label: "stands at",
        cell: (row) => h("span", { class: "kind", data: { kind: row.stage }, text: reasonWord(row.stage) }),
      },
      { label: "closed", number: true, cell: (row) => figure(count(row.closed)) },
      { label: "lots", number: true, cell: (row) => figure(lots(row.lots)) },
      { label: "result, USD", number: true, cell: (row) => signed(row.result_usd) },
      { label: "why", wide: true, cell: (row) => reasonWord(row.code) || "\u2013" },
    ],
  });
  let [isOver, nextAt] = [false, 0];

  async function load() {
    nextAt = performance.now() + AGAIN_MS;
    const found = await asking.run((signal) =>
      ask(`/api/cascades/${pathOf(id)}`, { parameters: { limit: PAGE }, signal }),
    );
    if (found === undefined) return;
    isOver = found.cascade.state === "ended";
    drawHead(head, bar, found.cascade);
    table.update(found.followers ?? []);
    say(told, found.next === null ? "" : `the first ${count(found.followers.length)} followers are listed`);
  }

  return {
    title: `Cascade ${id}`,
    node: panel(`Cascade ${id}`, { wide: "full" }, asking.node, bar, head, table.node, told),
    begin: load,
    beat: () => !isOver && !document.hidden && performance.now() >= nextAt && load(),
    drop: asking.drop,
  };
}

/** Ended are those that had copies and have none, had none, or failed. */
function drawHead(head, bar, found) {
  const all = numberOf(found.followers);
  const ended = ["done", "flat", "failed"].reduce((sum, name) => sum + numberOf(found[name]), 0);
  fill(
    bar,
    Number.isFinite(ended) && all > 0
      ? h("progress", {
          class: "broad",
          max: all,
          value: Math.min(all, ended),
          "aria-label": `${count(ended)} of ${count(all)} followers at their end`,
        })
      : null,
  );
  const facts = [
    ["master", accountLink(`strategy_provider:${found.master}`)],
    ["state", reasonWord(found.state)],
    ["followers", figure(count(found.followers))],
    ["closed", figure(count(found.done))],
    ["had none", figure(count(found.flat))],
    ["failed", h("span", { class: found.failed > 0 ? "down" : null, text: count(found.failed) })],
    ["result, USD", signed(found.result_usd)],
    ["begun", time(found.started_ms)],
    ["took", found.duration_ms === null ? "\u2013" : duration(found.duration_ms)],
  ];
  fill(
    head,
    facts.map(([label, value]) => h("div", {}, h("dt", { text: label }), h("dd", {}, value))),
  );
}
