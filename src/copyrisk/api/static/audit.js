// Search of the audit trail: kind, account, time; newest first, a page at a time. What is searched stands in the address.
import { makeAsking } from "./asking.js";
import { h, panel, say } from "./dom.js";
import { entriesTable } from "./entries.js";
import { count } from "./format.js";
import { ask } from "./http.js";

const KINDS = [
  "warning",
  "liquidation",
  "cascade",
  "replication",
  "operator",
  "brake",
  "kill",
  "protection",
  "restart",
];
const PAGE = 50;
const MOST_CALLS = 20;

export function auditView({ query }) {
  const asking = makeAsking();
  const table = entriesTable("Entries of the audit trail, newest first", "No entry that fits.");
  const told = h("span", { class: "hint", role: "status", id: "audit-said" });
  const older = h("button", { type: "button", text: "Older", id: "older", hidden: true });
  const fields = searchFields(query);
  let next = null;
  let entries = [];

  function parameters() {
    const { kind, account, from, to } = fields;
    return {
      kind: kind.value,
      account: account.value.trim(),
      from_ms: momentOf(from.value),
      to_ms: momentOf(to.value),
      limit: PAGE,
    };
  }

  /** A call looks at so many entries and no more: go on until a page is full, or for a while. */
  async function search(before = null) {
    say(told, "searching");
    let [found, at] = [before === null ? [] : entries, before];
    const full = found.length + PAGE;
    for (let call = 0; call < MOST_CALLS && found.length < full; call += 1) {
      const page = await asking.run((signal) =>
        ask("/api/audit", { parameters: { ...parameters(), before: at }, signal }),
      );
      if (page === undefined) {
        say(told, "");
        return;
      }
      found = [...found, ...page.entries];
      at = page.next;
      if (at === null) break;
    }
    [entries, next] = [found, at];
    table.update(entries);
    older.hidden = next === null;
    say(told, `${count(entries.length)} entries${next === null ? ", that is all" : ", there may be older ones"}`);
  }

  function submit(event) {
    event.preventDefault();
    const { kind, account, from, to } = fields;
    const given = Object.entries({
      kind: kind.value,
      account: account.value.trim(),
      from: from.value,
      to: to.value,
    }).filter(([, value]) => value);
    history.replaceState(null, "", `#/audit${given.length ? `?${new URLSearchParams(given)}` : ""}`);
    search();
  }

  older.addEventListener("click", () => search(next));
  const form = h(
    "form",
    { class: "search", id: "audit", on: { submit } },
    labelled("Kind", fields.kind),
    labelled("Account", fields.account),
    labelled("From", fields.from),
    labelled("Until", fields.to),
    h("button", { type: "submit", class: "main", text: "Search" }),
    told,
  );
  return {
    title: "Audit",
    node: panel("Audit trail", { wide: "full" }, form, asking.node, table.node, h("div", { class: "row" }, older)),
    begin: () => search(),
    drop: asking.drop,
  };
}

function searchFields(query) {
  const kind = h(
    "select",
    { id: "audit-kind" },
    h("option", { value: "", text: "every kind" }),
    KINDS.map((one) => h("option", { value: one, text: one })),
  );
  kind.value = KINDS.includes(query.get("kind")) ? query.get("kind") : "";
  const account = h("input", {
    id: "audit-account",
    placeholder: "live:17",
    autocomplete: "off",
    spellcheck: "false",
    maxlength: "96",
    value: query.get("account"),
  });
  const at = (name) => h("input", { id: `audit-${name}`, type: "datetime-local", step: "1", value: query.get(name) });
  return { kind, account, from: at("from"), to: at("to") };
}

const labelled = (label, field) => h("div", { class: "field" }, h("label", { for: field.id, text: label }), field);

/** The epoch milliseconds of a date and time in the browser's zone; empty if there is none. */
function momentOf(text) {
  const ms = text ? new Date(text).getTime() : NaN;
  return Number.isFinite(ms) ? ms : "";
}
