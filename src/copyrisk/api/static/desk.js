// The desk's page: who is signed in, which page is shown, what the top bar says, keys.
import { auditView } from "./audit.js";
import { accountView } from "./account.js";
import { cascadeView } from "./cascade.js";
import { redrawAll } from "./charts.js";
import { fill, h, say } from "./dom.js";
import { TYPES, accountHref, duration } from "./format.js";
import { ladderView } from "./ladder.js";
import { ageNow, live, liveness, onLive, silentMs, start, stopFollowing } from "./live.js";
import { overviewView } from "./overview.js";
import { onLeaving, signIn, signOut, takeFromAddress, token } from "./session.js";
import { signInView } from "./signin.js";
import { whatIfView } from "./what_if.js";

const at = (id) => document.getElementById(id);
const LATE_MS = 2_000;
const LOUD_MS = 5_000;
const BEAT_MS = 500;
const SEQUENCE_MS = 1_500;

const VIEWS = {
  overview: overviewView,
  ladder: ladderView,
  "what-if": whatIfView,
  audit: auditView,
  account: accountView,
  cascade: cascadeView,
};
let shown = null; // {view, drop}
let why = "";

// ---- pages

function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [page = "", ...rest] = path.split("/").map(decoded);
  return { page: page || "overview", rest, query: new URLSearchParams(query) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function show() {
  if (takeFromAddress()) start();
  shown?.drop?.();
  shown = null;
  const isIn = token() !== null;
  at("bar").hidden = at("pulse").hidden = !isIn;
  if (!isIn) {
    stopFollowing();
    shown = draw(signInView({ why, enter }));
    document.title = "Sign in \u2013 copyrisk desk";
    return beat();
  }
  if (live.state === "off") start();
  const { page, rest, query } = place();
  const make = VIEWS[page];
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.dataset.page === page) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  shown = draw(
    make
      ? make({ rest, query })
      : { title: "No such page", node: h("p", { class: "lonely", text: "There is no such page." }) },
  );
  document.title = `${shown.title} \u2013 copyrisk desk`;
  scrollTo(0, 0);
  return beat();
}

function draw(view) {
  const heading = h("h1", { class: "unseen", tabindex: "-1", text: view.title });
  fill(at("main"), heading, view.node);
  view.begin?.();
  return view;
}

/** After another page was asked for: where the focus was is gone, so it begins at the heading; never in a field. */
function turn() {
  show();
  const isLost = [null, document.body, at("main")].includes(document.activeElement);
  if (isLost && token() !== null) at("main").querySelector("h1").focus({ preventScroll: true });
}

function enter(given) {
  why = "";
  signIn(given);
  start();
  show();
  at("main").focus();
}

onLeaving((reason) => {
  why = reason;
  show();
});

// ---- the bar

const CONNECTION = {
  off: "signed out",
  connecting: "connecting",
  open: "live",
  lost: "connection lost, trying again",
  refused: "refused",
};

function connectionWords() {
  if (live.state === "refused") return `refused: ${live.refusal?.message ?? ""}`;
  if (live.state === "open" && live.hasHouse) {
    if (live.summary === null) return "waiting for figures";
    if (liveness() !== "live") return "figures are old";
    return isTicking() ? "live" : "live, but no ticks";
  }
  return CONNECTION[live.state];
}

/** Whether the daemon values accounts: without it figures are of now, and nobody does anything about them. */
function isTicking() {
  const age = ageNow(live.summary?.tick?.age_ms);
  return age !== null && age <= LOUD_MS;
}

/** Twice a second: how old everything is. What does not say how old it is looks live. */
function beat() {
  const state = liveness();
  document.body.dataset.live = state;
  const connection = at("connection");
  say(connection, connectionWords());
  connection.dataset.state = state === "live" && live.summary !== null && !isTicking() ? "old" : state;
  const { summary } = live;
  const tickAge = ageNow(summary?.tick?.age_ms ?? null);
  const bookAge = ageNow(summary?.book_age_ms ?? null);
  drawAges([
    ["last tick", summary === null ? "\u2013" : tickAge === null ? "unknown" : `${duration(tickAge)} ago`, tickAge],
    ["tick takes", summary === null ? "\u2013" : duration(summary.tick?.duration_ms), 0],
    ["late ticks", summary === null ? "\u2013" : String(summary.tick?.late_ticks ?? "unknown"), 0],
    ["book", summary === null ? "\u2013" : bookAge === null ? "unknown" : `${duration(bookAge)} old`, bookAge],
  ]);
  drawAlarms(alarms(state, tickAge));
}

function drawAges(rows) {
  const list = at("ages");
  list.hidden = !live.hasHouse;
  if (list.children.length !== rows.length)
    fill(
      list,
      rows.map(([label]) => h("div", {}, h("dt", { text: label }), h("dd"))),
    );
  rows.forEach(([, text, age], row) => {
    const value = list.children[row].lastElementChild;
    say(value, text);
    value.dataset.age = age > LOUD_MS ? "loud" : age > LATE_MS ? "late" : "";
  });
}

function alarms(state, tickAge) {
  if (token() === null) return [];
  const { summary } = live;
  const said = [];
  if (state === "old" && live.state === "refused")
    said.push(["bad", `The server refuses live figures: ${live.refusal.message} (${live.refusal.code}).`]);
  else if (state === "old" && live.state !== "open")
    said.push(["bad", "Connection lost: these figures are old. Trying again."]);
  else if (state === "old" && silentMs() > LOUD_MS)
    said.push(["bad", "Nothing has arrived for more than 5 s: these figures are old."]);
  else if (state === "old")
    said.push(["bad", "The desk's book is old: its figures are withheld until it is up to date."]);
  if (state === "live" && summary && tickAge === null)
    said.push(["bad", "No tick of the daemon is known: nobody is warned or closed out."]);
  else if (state === "live" && tickAge > LOUD_MS)
    said.push(["bad", "The daemon has not ticked for more than 5 s: nobody is warned or closed out."]);
  const halted = summary?.halted ?? [];
  if (summary && summary.halted === null)
    said.push(["bad", "Whether trading is halted is unknown: the kill switch cannot be read."]);
  if (halted.length) said.push(["halt", `Halted by the kill switch: ${halted.join(", ")}`]);
  if (live.dropped)
    said.push(["note", `${live.dropped} or more entries are missing from the live list; the audit page has them all.`]);
  return said;
}

function drawAlarms(said) {
  const told = said.map(([kind, text]) => `${kind} ${text}`).join("\n");
  const box = at("alarms");
  if (box.dataset.told === told) return; // said once, not twice a second
  box.dataset.told = told;
  fill(
    box,
    said.map(([kind, text]) => h("p", { class: kind, text })),
  );
}

// ---- what one can do everywhere

function switchTheme() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("copyrisk.theme", theme);
  } catch {
    // kept until the page is left
  }
  drawTheme();
  redrawAll();
}

function drawTheme() {
  const other = document.documentElement.dataset.theme === "dark" ? "Light" : "Dark";
  say(at("theme"), other);
  at("theme").setAttribute("aria-label", `${other} theme`);
}

/** `live:17` opens it; a bare id is a live account's. */
function find(event) {
  event.preventDefault();
  const field = at("find-account");
  const text = field.value.trim();
  const account = text.includes(":") ? text : `live:${text}`;
  if (!TYPES.includes(account.split(":")[0]) || !/^[\w-]{1,64}$/.test(account.slice(account.indexOf(":") + 1))) {
    field.setAttribute("aria-invalid", "true");
    say(at("find-said"), `No account: ${text}. Like live:17; types are ${TYPES.join(", ")}.`);
    field.title = at("find-said").textContent;
    return;
  }
  field.removeAttribute("aria-invalid");
  field.removeAttribute("title");
  say(at("find-said"), "");
  field.value = "";
  field.blur();
  location.hash = accountHref(account);
}

const GO = { o: "#/", l: "#/ladder", w: "#/what-if", a: "#/audit" };
let wentAt = -Infinity;

function onKey(event) {
  const typing = event.target.closest?.("input, textarea, select, dialog");
  if (event.key === "Escape" && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey || token() === null) return;
  const now = performance.now();
  if (now - wentAt < SEQUENCE_MS && GO[event.key]) {
    document.activeElement?.blur();
    location.hash = GO[event.key];
    wentAt = -Infinity;
  } else if (event.key === "g") wentAt = now;
  else if (event.key === "/") at("find-account").focus();
  else if (event.key === "?") at("keys").showModal();
  else if (event.key === "t") switchTheme();
  else return;
  event.preventDefault();
}

addEventListener("hashchange", turn);
addEventListener("keydown", onKey);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which page is shown
  at("main").focus();
});
at("theme").addEventListener("click", switchTheme);
at("help").addEventListener("click", () => at("keys").showModal());
at("leave").addEventListener("click", () => signOut());
at("find").addEventListener("submit", find);
for (const kind of ["input", "blur"]) {
  at("find-account").addEventListener(kind, (event) => event.target.removeAttribute("aria-invalid"));
}
onLive((what) => {
  beat();
  shown?.live?.(what);
});
setInterval(() => {
  beat();
  shown?.beat?.();
}, BEAT_MS);
drawTheme();
show();
