// The house's stream: what came last, when, and whether it still says anything about now.
import { follow } from "./stream.js";

const SILENT_MS = 5_000;
const KEPT_MS = 300_000; // of the latency charts
const KEPT_NEWS = 100;
const NOT_FOR_ALL = new Set(["account_forbidden", "missing_scope"]);
const NEWS = ["breaches", "liquidations"];
/** What is asked for; what the token may not see is left out, and the next is asked for. */
const WISHES = [["summary", ...NEWS], ["summary"], NEWS];

/** What is known of the house; views only read it. */
export const live = {
  summary: null,
  state: "off", // off, connecting, open, lost, refused
  refusal: null,
  seenAt: null, // performance.now() of the last summary
  latencies: [], // {ts_ms, tick_ms, p50_ms, p99_ms, period_ms}
  news: [], // {name, data, at_ms}
  dropped: 0,
  hasHouse: true, // whether this token may see the house's figures
};

const listeners = new Set();
let stop = null;

/** Call on every change; returns a function that ends that. */
export function onLive(act) {
  listeners.add(act);
  return () => listeners.delete(act);
}

function announce(what) {
  for (const act of listeners) act(what);
}

/** `live`: figures are of now; `old`: they are not; `waiting`: there are none yet; `off`: nobody is signed in. */
export function liveness() {
  if (live.state === "off") return "off";
  if (!live.hasHouse) return live.state === "open" ? "live" : "old";
  if (live.summary === null) return live.state === "refused" ? "old" : "waiting";
  return live.state === "open" && silentMs() < SILENT_MS && !bookIsOld() ? "live" : "old";
}

export function silentMs() {
  return live.seenAt === null ? Infinity : performance.now() - live.seenAt;
}

/** An age that the summary told, as of now. */
export function ageNow(ms) {
  return ms === null || ms === undefined ? null : ms + silentMs();
}

function bookIsOld() {
  const age = live.summary?.book_age_ms;
  return age === null || age === undefined || ageNow(age) > SILENT_MS * 2 || live.summary.totals === null;
}

export function start() {
  stopFollowing();
  Object.assign(live, {
    summary: null,
    seenAt: null,
    latencies: [],
    news: [],
    dropped: 0,
    hasHouse: true,
    refusal: null,
  });
  begin(WISHES);
}

function begin([topics, ...lesser]) {
  stop = follow(topics, {
    take,
    tell(state, refusal) {
      if (state === "refused" && NOT_FOR_ALL.has(refusal.code) && lesser.length) {
        begin(lesser);
        return;
      }
      if (state === "open") live.hasHouse = topics.includes("summary");
      live.state = state;
      live.refusal = refusal ?? null;
      announce("state");
    },
  });
}

export function stopFollowing() {
  stop?.();
  stop = null;
  live.state = "off";
  announce("state");
}

function take(name, data) {
  if (name === "summary") {
    live.summary = data;
    live.seenAt = performance.now();
    keepLatency(data);
  } else if (name === "gap") {
    for (const number of Object.values(data?.dropped ?? {})) live.dropped += Number(number) || 1; // null: nobody knows how many
  } else if (name === "breaches" || name === "liquidations") {
    const key = String(data?.seq); // a close comes on both topics
    if (live.news.some((one) => one.key === key)) return;
    live.news.unshift({ name, data, key });
    live.news.length = Math.min(live.news.length, KEPT_NEWS);
  } else {
    return;
  }
  announce(name);
}

function keepLatency(summary) {
  const last = live.latencies.at(-1);
  if (last && summary.now_ms <= last.ts_ms) return;
  live.latencies.push({
    ts_ms: summary.now_ms,
    tick_ms: summary.tick?.duration_ms ?? null,
    period_ms: summary.tick?.period_ms ?? null,
    p50_ms: finite(summary.replication?.p50_ms),
    p99_ms: finite(summary.replication?.p99_ms),
  });
  while (live.latencies[0].ts_ms < summary.now_ms - KEPT_MS) live.latencies.shift();
}

function finite(value) {
  const number = value === null || value === undefined || value === "" ? NaN : Number(value);
  return Number.isFinite(number) ? number : null;
}
