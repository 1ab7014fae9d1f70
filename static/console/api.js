// Calls of Herald's HTTP API with the session's cookie. An answer that is not a success is thrown as a `Refusal`.

const WORDS = {
  400: "The server could not read the request.",
  403: "This is not permitted.",
  404: "This does not exist, or no longer exists. It may have been renamed or deleted.",
  413: "This is too large.",
  429: "There were too many attempts.",
  503: "The server cannot do this now.",
}

/**
 * Tells the page when a session has ended (`expired`), when it may not reach an app under this slug (`missing`), and whether the
 * server answers (`reachable`, `unreachable`).
 */
export const network = new EventTarget()

/**
 * Why a call failed: its status (0 if the server could not be reached), words for a person, the faults by field, and whether
 * the session has ended, which leads to the login by itself.
 */
export class Refusal extends Error {
  constructor(status, { detail, fields = {}, retryAfterS = null, isExpired = false } = {}) {
    super(words(status, detail, retryAfterS))
    Object.assign(this, { status, fields, isExpired })
  }

  /** The words for a place that has none of the fields: they say which field has which fault. */
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

/** The path of a channel. Its name may hold slashes, which are written so that none of them is lost. */
export function channelPath(slug, scope, channel, rest = "") {
  return appPath(slug, `/channels/${encodeURIComponent(scope)}/${encodeURIComponent(channel)}${rest}`)
}

/** With `mayBeRefused` a 401 says something of this call alone, such as that a password is wrong. */
async function call(method, path, body, { mayBeRefused = false } = {}) {
  const response = await answer(method, path, body)
  const text = response.status === 204 ? "" : await response.text()
  const said = parsed(text)
  if (response.ok) return said
  const isExpired = response.status === 401 && !mayBeRefused
  if (isExpired) network.dispatchEvent(new Event("expired"))
  if ([403, 404].includes(response.status) && path.startsWith("/api/apps/")) network.dispatchEvent(new Event("missing"))
  throw refusal(response, said, isExpired)
}

async function answer(method, path, body) {
  const headers = { accept: "application/json" }
  if (body !== undefined) headers["content-type"] = "application/json"
  try {
    const response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    })
    network.dispatchEvent(new Event("reachable"))
    return response
  } catch {
    network.dispatchEvent(new Event("unreachable"))
    throw new Refusal(0)
  }
}

function refusal(response, said, isExpired) {
  const { detail, ...fields } = said?.errors ?? {}
  const retryAfterS = Number(response.headers.get("retry-after")) || null
  return new Refusal(response.status, { detail: typeof detail === "string" ? detail : undefined, fields, retryAfterS, isExpired })
}

function parsed(text) {
  try {
    return text === "" ? null : JSON.parse(text)
  } catch {
    return null
  }
}

function words(status, detail, retryAfterS) {
  if (status === 0) return "The server cannot be reached."
  if (status === 422) return "Some fields are not valid."
  const known = WORDS[status] ?? `The server answered with the status ${status}.`
  const said =
    detail && !["not found", "service unavailable, try again later", "too many attempts, try again later"].includes(detail)
      ? ` (${detail})`
      : ""
  return `${known}${retryAfterS ? ` Try again in ${retryAfterS} seconds.` : ""}${said}`
}
