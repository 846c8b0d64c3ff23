// Asking the service. Every address is relative to the page's, which may lie behind a prefix.

/** What the service answered instead, as a problem of RFC 9457; `status` 0: it did not answer at all. */
export class Problem extends Error {
  constructor(status, code, message, { requestId = null, retryAfterSeconds = null } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfterSeconds });
  }

  /** Whether the same request may do better in a while. */
  get mayPass() {
    return [0, 408, 423, 429, 502, 503, 504].includes(this.status) || this.code === "idempotency_conflict";
  }
}

const listeners = { unauthorized: () => {}, reached: () => {}, unreached: () => {} };

export function onAnswers(given) {
  Object.assign(listeners, given);
}

/** The service has been heard by other means. */
export function heard() {
  listeners.reached();
}

/** A path of the API, or a link that the service gave, as an address for this page. */
export function address(path, query = {}) {
  const url = new URL(path.replace(/^\//, ""), new URL(".", document.baseURI));
  for (const [name, value] of Object.entries(query)) {
    for (const one of [value].flat()) if (one !== null && one !== undefined) url.searchParams.append(name, one);
  }
  return url.href;
}

export async function ask(method, path, { query, body, headers = {}, signal } = {}) {
  let answer;
  try {
    answer = await fetch(address(path, query), {
      method,
      signal,
      headers: body === undefined ? headers : { "Content-Type": "application/json", ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    listeners.unreached();
    throw new Problem(0, "unreachable", "The service does not answer.");
  }
  heard();
  if (answer.ok) return answer;
  const problem = problemOf(answer.status, await answer.text(), (name) => answer.headers.get(name));
  if (problem.status === 401) listeners.unauthorized(problem);
  throw problem;
}

export async function askJson(method, path, options) {
  const answer = await ask(method, path, options);
  return answer.status === 204 ? null : answer.json();
}

/** Of an answer that was read by other means, such as the uploads'. */
export function problemOf(status, text, header = () => null) {
  let told = {};
  try {
    told = JSON.parse(text) ?? {};
  } catch {
    // A proxy's own page, or nothing.
  }
  const seconds = Number(header("Retry-After"));
  return new Problem(status, told.code ?? `http_${status}`, told.detail ?? told.title ?? `The service answered ${status}.`, {
    requestId: told.request_id ?? header("X-Request-ID"),
    retryAfterSeconds: Number.isFinite(seconds) && seconds > 0 ? seconds : null,
  });
}
