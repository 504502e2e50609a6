// Server-sent events read with fetch: EventSource cannot send the Authorization header.
import { ApiRefusal, address, open } from "./http.js";
import { signOut, token } from "./session.js";

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
const SILENCE_MS = 20_000; // the server says something each 15 s at the latest
const LONGEST_EVENT = 4_000_000; // characters
const FINAL_STATUS = new Set([401, 403, 404, 422]);
const CREDENTIAL_CODES = new Set([
  "expired_token",
  "invalid_token",
  "revoked_key",
  "expired_key",
  "unknown_key",
  "missing_credentials",
]);

/** Cuts what arrives into events: text comes in pieces that end anywhere. */
export class EventReader {
  constructor(take) {
    this.take = take;
    this.rest = "";
    this.clear();
  }

  clear() {
    Object.assign(this, { name: "message", data: [], id: undefined });
  }

  feed(text) {
    this.rest += text;
    if (this.rest.length > LONGEST_EVENT) throw new Error("an event without an end");
    const lines = this.rest.split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    lines.forEach((line) => this.line(line));
  }

  line(line) {
    if (line === "") {
      if (this.data.length) this.take({ name: this.name, data: this.data.join("\n"), id: this.id });
      this.clear();
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.name = value;
    else if (field === "data") this.data.push(value);
    else if (field === "id" && !value.includes("\0")) this.id = value;
  }
}

/**
 * Follow topics until stopped; connects again by itself, going on where it was.
 *
 * `take(name, data)`: an event, its JSON read. `tell(state, refusal)`: `connecting`, `open`, `lost`, `refused`.
 * Returns a function that stops it.
 */
export function follow(topics, { accounts = [], take, tell }) {
  const whole = new AbortController();
  let pauseMs = FIRST_PAUSE_MS;
  let lastId;

  function takeEvent(event) {
    pauseMs = FIRST_PAUSE_MS;
    if (event.id !== undefined) lastId = event.id;
    let data;
    try {
      data = JSON.parse(event.data);
    } catch {
      return; // no event of ours
    }
    if (event.name === "end" && CREDENTIAL_CODES.has(data?.code ?? data?.error_code)) {
      signOut(`${data.message ?? "your access has ended"} (${data.code ?? data.error_code})`);
      return;
    }
    take(event.name, data);
  }

  async function once() {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    whole.signal.addEventListener("abort", stop);
    let watch = setTimeout(stop, SILENCE_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      if (lastId !== undefined) headers["Last-Event-ID"] = lastId;
      const parameters = { topics: topics.join(","), accounts: accounts.join(",") };
      const response = await open(address("/api/stream", parameters), { headers, signal: attempt.signal });
      tell("open");
      const reader = new EventReader(takeEvent);
      const pieces = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await pieces.read();
        if (done) return;
        clearTimeout(watch);
        watch = setTimeout(stop, SILENCE_MS);
        reader.feed(value);
      }
    } finally {
      clearTimeout(watch);
      whole.signal.removeEventListener("abort", stop);
      attempt.abort();
    }
  }

  async function run() {
    while (!whole.signal.aborted && token() !== null) {
      tell("connecting");
      let refusal = null;
      try {
        await once();
      } catch (fault) {
        if (fault instanceof ApiRefusal) refusal = fault;
      }
      if (whole.signal.aborted) return;
      if (refusal !== null && FINAL_STATUS.has(refusal.status)) {
        tell("refused", refusal);
        return;
      }
      tell("lost", refusal);
      const waitMs = Math.max((refusal?.retryAfterS ?? 0) * 1000, pauseMs * (0.75 + Math.random() / 2));
      pauseMs = Math.min(LONGEST_PAUSE_MS, pauseMs * 2);
      await pause(waitMs, whole.signal);
    }
  }

  run();
  return () => whole.abort();
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener(
      "abort",
      () => {
        clearTimeout(timer);
        resolve();
      },
      { once: true },
    );
  });
}
