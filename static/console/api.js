// Calls of Herald's HTTP API with the session's cookie. An answer that is not a success is thrown as a `Refusal`.

const WORDS = {
  400: "The server could not read the request.",
  403: "This is not permitted.",
  404: "This does not exist, or no longer exists. It may have been renamed or deleted.",
  413: "This is too large.",
  429: "There were too many attempts.",
  503: "The server cannot do this now.",
}

/** The longest time until an answer begins. A server that takes longer counts as unreachable. */
const ANSWER_MS_MAX = 15_000
/** The longest time until the rest of an answer has arrived. */
const BODY_MS_MAX = 60_000

/**
 * Tells the page when a session has ended (`expired`), when a call is not permitted to it (`forbidden`), and whether the server
 * answers (`reachable`, `unreachable`).
 */
export const network = new EventTarget()

/** The number of sessions that have begun in this page. */
let begun = 0
/** How many times a session has begun or ended. The answer to a call from before the last time is for nobody who is here now. */
let turns = 0
/** How far the server's clock is ahead of this browser's, as the latest answer says. */
let aheadMs = 0

/** Begins a session. From now on, the page drops the answers to earlier calls. */
export function beginSession() {
  begun += 1
  turns += 1
}

/** Ends the session. From now on, the page drops the answers to earlier calls. */
export function endSession() {
  turns += 1
}

/** The number of the present session, or of the last one. */
export const sessionNumber = () => begun

/** The present time of the server, in milliseconds. */
export const serverNow = () => Date.now() + aheadMs

/**
 * The reason why a call failed: its status (0 if there was no answer), a text for people, the faults by field, and whether the
 * session of the call has ended. In this case nothing is shown: the page shows the login, or another session, by itself.
 */
export class Refusal extends Error {
  constructor(status, { detail, fields = {}, retryAfterS = null, isExpired = false, isWrite = false } = {}) {
    super(status === 0 ? unanswered(isWrite) : words(status, detail, retryAfterS))
    Object.assign(this, { status, fields, isExpired })
  }

  /** The text for a place without the fields: it names each field with its fault. */
  get words() {
    const faults = Object.entries(this.fields).map(([name, said]) => `${name} ${[said].flat().join(", ")}.`)
    return faults.length === 0 ? this.message : faults.join(" ").replace(/^./, first => first.toUpperCase())
  }
}

export const get = (path, options) => call("GET", path, undefined, options)
export const post = (path, body = {}, options) => call("POST", path, body, options)
export const patch = (path, body) => call("PATCH", path, body)
export const remove = path => call("DELETE", path)

/** A path below `/api/apps/<slug>`, or for the admin below `/api/admin/apps/<slug>`. */
export const appPath = (slug, rest = "") => `/api/apps/${encodeURIComponent(slug)}${rest}`
export const adminPath = (slug, rest = "") => `/api/admin/apps/${encodeURIComponent(slug)}${rest}`

/** The path of a channel. Slashes in its name are encoded where the server would ignore them. */
export function channelPath(slug, scope, channel, rest = "") {
  return appPath(slug, `/channels/${encodeURIComponent(scope)}/${encodeURIComponent(channel)}${rest}`)
}

/** Reads JSON whose numbers keep their spelling: as numbers, long ones would be rounded. Older browsers cannot do that. */
export function exactly(text) {
  const spelled = (_, value, context) =>
    typeof value === "number" && context && JSON.rawJSON ? JSON.rawJSON(context.source) : value
  return JSON.parse(text, spelled)
}

/**
 * With `mayBeRefused`, a 401 concerns this call only, for example a wrong password, and does not end the session. With `isWrite`,
 * the call changes something that a person can look at: without an answer, nobody knows whether it has. `read` reads the text of
 * the answer.
 */
async function call(method, path, body, { mayBeRefused = false, isWrite = method !== "GET", read = JSON.parse } = {}) {
  const turn = turns
  const answered = await answer(method, path, body)
  const isPast = turn !== turns
  if (answered === null) throw new Refusal(0, { isExpired: isPast, isWrite })
  const { response, text } = answered
  const said = parsed(text, read)
  if (response.ok && !isPast) return said
  const isRefused = response.status === 401 && !mayBeRefused
  if (isRefused && !isPast) network.dispatchEvent(new Event("expired"))
  if (response.status === 403 && !isPast) network.dispatchEvent(new Event("forbidden"))
  throw refusal(response, said, isPast || isRefused)
}

/** The answer to a request, or null if there is none. */
async function answer(method, path, body) {
  const headers = { accept: "application/json" }
  if (body !== undefined) headers["content-type"] = "application/json"
  const ending = new AbortController()
  const endAfter = ms => setTimeout(() => ending.abort(), ms)
  let timer = endAfter(ANSWER_MS_MAX)
  try {
    const response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      signal: ending.signal,
    })
    clearTimeout(timer)
    timer = endAfter(BODY_MS_MAX)
    const text = await response.text()
    aheadMs = Date.parse(response.headers.get("date")) - Date.now() || 0
    network.dispatchEvent(new Event("reachable"))
    return { response, text }
  } catch {
    network.dispatchEvent(new Event("unreachable"))
    return null
  } finally {
    clearTimeout(timer)
  }
}

function refusal(response, said, isExpired) {
  const { detail, ...fields } = said?.errors ?? {}
  const retryAfterS = Number(response.headers.get("retry-after")) || null
  return new Refusal(response.status, { detail: typeof detail === "string" ? detail : undefined, fields, retryAfterS, isExpired })
}

function parsed(text, read) {
  try {
    return text === "" ? null : read(text)
  } catch {
    return null
  }
}

/** A browser does not say whether a request without an answer has reached the server. */
function unanswered(isWrite) {
  if (!isWrite) return "The server cannot be reached."
  return "The server has not answered. The change may have been made: look before you repeat it."
}

function words(status, detail, retryAfterS) {
  if (status === 422) return "Some fields are not valid."
  const known = WORDS[status] ?? `The server answered with the status ${status}.`
  const said =
    detail && !["not found", "service unavailable, try again later", "too many attempts, try again later"].includes(detail)
      ? ` (${detail})`
      : ""
  return `${known}${retryAfterS ? ` Try again in ${retryAfterS} seconds.` : ""}${said}`
}
