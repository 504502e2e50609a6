// The house's stream: what came last, when, and whether it still says anything about now.
import { ask } from "./http.js";
import { follow } from "./stream.js";

const SILENT_MS = 5_000;
const KEPT_MS = 300_000; // of the latency charts
const KEPT_NEWS = 100;
const NOT_FOR_ALL = new Set(["account_forbidden", "missing_scope"]);
const NEWS = ["breaches", "liquidations"];
const KINDS_BEFORE = ["warning", "liquidation", "cascade"];
const NEWS_BEFORE = 20; // of each kind, from before the page was opened
/** What is asked for; what the token may not see is left out, and the next is asked for. */
const WISHES = [["summary", ...NEWS], ["summary"], NEWS];

/** What is known of the house; views only read it. */
export const live = {
  summary: null,
  state: "off", // off, connecting, open, lost, refused
  refusal: null,
  seenAt: null, // performance.now() of the last summary
  latencies: [], // {ts_ms, tick_ms, p50_ms, p99_ms, period_ms}
  news: [], // {data, key}: entries of the trail, newest first
  hasPast: false, // whether those from before the page was opened are among them
  dropped: 0,
  hasHouse: true, // whether this token may see the house's figures
};

const listeners = new Set();
let stop = null;
let past = null; // ends the question for what was before

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
    hasPast: false,
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
      if (state === "open" && !live.hasPast) lookBack(); // from here on the stream says what is new
    },
  });
}

export function stopFollowing() {
  stop?.();
  past?.abort();
  stop = past = null;
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
    keepNews([data]);
  } else {
    return;
  }
  announce(name);
}

/** What happened before the page was opened, as far as this token may read the trail. */
async function lookBack() {
  past?.abort();
  const { signal } = (past = new AbortController());
  const asked = KINDS_BEFORE.map((kind) => ask("/api/audit", { parameters: { kind, limit: NEWS_BEFORE }, signal }));
  const answers = await Promise.allSettled(asked);
  if (signal.aborted) return;
  live.hasPast = answers.every((one) => one.status === "fulfilled");
  keepNews(answers.flatMap((one) => one.value?.entries ?? []));
  announce("news");
}

/** Newest first, each once: a close comes on both topics, and what is new may be in the trail's answer as well. */
function keepNews(entries) {
  const bySeq = new Map([...live.news.map((one) => one.data), ...entries].map((data) => [Number(data?.seq), data]));
  live.news = [...bySeq]
    .sort(([one], [other]) => other - one)
    .slice(0, KEPT_NEWS)
    .map(([seq, data]) => ({ data, key: String(seq) }));
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
