// Questions to the API in its envelope. A refusal is an ApiRefusal with the API's code and words.
import { signOut, token } from "./session.js";

const TIME_LIMIT_MS = 15_000;

export class ApiRefusal extends Error {
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    Object.assign(this, { status, code, retryAfterS });
  }
}

const CREDENTIALS = 401;

/** The path with its parameters; empty ones are left out. */
export function address(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return query ? `${path}?${query}` : path;
}

/** One account's path: `live:17` -> `live/17`, encoded. */
export const pathOf = (...parts) => parts.map((part) => encodeURIComponent(part)).join("/");

async function refusalOf(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // not in the envelope: something in between answered
  }
  const code = typeof body?.error_code === "string" ? body.error_code : `http_${response.status}`;
  const message = typeof body?.message === "string" ? body.message : `the server answered ${response.status}`;
  return new ApiRefusal(response.status, code, message, Number(response.headers.get("Retry-After")) || null);
}

/** The response itself, if it is a good one. A 401 signs out with the reason. */
export async function open(path, { signal, headers = {}, ...options } = {}) {
  const bearer = token();
  let response;
  try {
    response = await fetch(path, {
      ...options,
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      headers: { ...headers, Authorization: `Bearer ${bearer}` },
    });
  } catch (fault) {
    if (signal?.aborted) throw fault;
    throw new ApiRefusal(0, "not_connected", "the server cannot be reached");
  }
  if (response.ok) return response;
  const refusal = await refusalOf(response);
  if (refusal.status === CREDENTIALS && bearer === token()) signOut(`${refusal.message} (${refusal.code})`);
  throw refusal;
}

/** The `data` of an answer. */
export async function ask(path, { parameters = {}, body, signal } = {}) {
  const limit = AbortSignal.timeout(TIME_LIMIT_MS);
  const options = {
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
    headers: { Accept: "application/json" },
  };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    options.headers["Content-Type"] = "application/json";
  }
  try {
    const response = await open(address(path, parameters), options);
    return (await response.json()).data;
  } catch (fault) {
    if (fault instanceof ApiRefusal || signal?.aborted) throw fault;
    if (limit.aborted) throw new ApiRefusal(0, "no_answer", `no answer within ${TIME_LIMIT_MS / 1000} s`);
    throw new ApiRefusal(0, "unreadable_answer", "the answer cannot be read");
  }
}
