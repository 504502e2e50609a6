// Entries of the audit trail, and of an account's own history, as rows of a table.
import { h } from "./dom.js";
import { accountLink, reasonWord, time } from "./format.js";
import { makeTable } from "./table.js";

const SAID_CHARS = 20_000;

/** What an entry says, folded away; text as it stands there. */
export function said(value) {
  if (value === null || value === undefined || (typeof value === "object" && !Object.keys(value).length))
    return "\u2013";
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const shown =
    text.length > SAID_CHARS ? `${text.slice(0, SAID_CHARS)}\n(cut; copyrisk-run audit show has all of it)` : text;
  return h("details", {}, h("summary", { text: "show" }), h("pre", { text: shown }));
}

export const kindMark = (kind) => h("span", { class: "kind", data: { kind }, text: reasonWord(kind) });

export function entriesTable(caption, empty) {
  return makeTable({
    caption,
    empty,
    keyOf: (row) => row.seq,
    id: "entries",
    columns: [
      { label: "time", cell: (row) => time(row.ts_ms) },
      { label: "kind", cell: (row) => kindMark(row.kind) },
      { label: "account", cell: (row) => accountLink(row.account) },
      { label: "reason", cell: (row) => reasonWord(row.reason) || "\u2013" },
      { label: "cause", lesser: true, cell: (row) => h("code", { text: row.cause || "\u2013" }) },
      { label: "said", wide: true, cell: (row) => said(row.said) },
      { label: "no.", number: true, lesser: true, cell: (row) => String(row.seq) },
    ],
  });
}
