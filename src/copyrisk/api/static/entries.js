// Entries of the audit trail, and of an account's own history, as rows of a table.
import { h } from "./dom.js";
import { whyAndHow } from "./entry_words.js";
import { accountLink, reasonWord, time } from "./format.js";
import { makeTable } from "./table.js";

const SAID_CHARS = 20_000;

/** What an entry says as JSON, folded away; text as it stands there. */
export function said(value) {
  if (value === null || value === undefined || (typeof value === "object" && !Object.keys(value).length))
    return "\u2013";
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  const shown =
    text.length > SAID_CHARS ? `${text.slice(0, SAID_CHARS)}\n(cut; copyrisk-run audit show has all of it)` : text;
  return h("details", {}, h("summary", { text: "JSON" }), h("pre", { text: shown }));
}

export const kindMark = (kind) => h("span", { class: "kind", data: { kind }, text: reasonWord(kind) });

/** Why and how, in words, and all of it on demand. */
function story(row) {
  const words = whyAndHow(row);
  return h("div", { class: "story" }, words ? h("p", { text: words }) : null, said(row.said));
}

export function entriesTable(caption, empty) {
  return makeTable({
    caption,
    empty,
    keyOf: (row) => row.seq,
    id: "entries",
    columns: [
      { label: "time", cell: (row) => time(row.ts_ms) },
      {
        label: "kind, account",
        cell: (row) => h("div", { class: "whom" }, kindMark(row.kind), accountLink(row.account)),
      },
      { label: "what it says", wide: true, cell: story },
      { label: "cause", lesser: true, cell: (row) => h("code", { text: row.cause || "\u2013" }) },
      { label: "no.", number: true, lesser: true, cell: (row) => String(row.seq) },
    ],
  });
}
