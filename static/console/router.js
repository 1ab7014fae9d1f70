// Shows the view that the address names: the part after `#` is a path, such as `#/apps/foo-app/live`.
//
// A view is a function of `{ params, query, signal, session }` that returns `{ title, node }`, and perhaps `update(params)`; a view
// that only redirects returns `isRedirect`, too. `signal` aborts when the view is left. If only parameters in the route's `keeps`
// change, the view stays and is updated.

import { focusHeading } from "./dom.js"

export class Router {
  /** `routes` are `{ path, view, keeps }`; `session` returns the present login. */
  constructor(outlet, routes, session) {
    Object.assign(this, { outlet, session, shown: null, hasShown: false })
    this.routes = routes.map(route => ({ ...route, parts: route.path.split("/") }))
  }

  start() {
    addEventListener("hashchange", () => this.show())
    this.show()
  }

  /** Shows the view of the present address. */
  show() {
    const { path, query } = here()
    const found = this.find(path)
    if (found === null) return go("/", { replace: true })
    const { route, params } = found
    if (this.shown?.route === route && this.shown.view.update && isKept(route, this.shown.params, params)) {
      this.shown.params = params
      this.shown.view.update(params, query)
    } else {
      this.open(route, params, query)
    }
    if (this.shown.view.isRedirect) return
    document.title = `${this.shown.view.title} · Herald console`
    // The browser itself begins at the top of a page that has just been loaded.
    if (this.hasShown) {
      scrollTo(0, 0)
      focusHeading()
    }
    this.hasShown = true
    this.outlet.dispatchEvent(new CustomEvent("shown", { detail: path }))
  }

  open(route, params, query) {
    this.close()
    const leaving = new AbortController()
    const view = route.view({ params, query, signal: leaving.signal, session: this.session() })
    this.shown = { route, params, view, leaving }
    this.outlet.replaceChildren(view.node)
  }

  /** Leaves the view, which aborts its `signal`. */
  close() {
    this.shown?.leaving.abort()
    this.shown = null
  }

  find(path) {
    for (const route of this.routes) {
      const params = match(route.parts, path.split("/"))
      if (params !== null) return { route, params }
    }
    return null
  }
}

/** The path and query of the present address, and both together. */
export function here() {
  const address = location.hash.replace(/^#/, "") || "/"
  const [path, query = ""] = address.split("?")
  return { path: path || "/", query: new URLSearchParams(query), address }
}

/** The address of a view. Each of `parts` becomes one segment of the path, whatever characters it has. */
export function link(...parts) {
  return `#/${parts.map(encodeURIComponent).join("/")}`
}

/** Goes to a path such as `/apps`. */
export function go(path, { replace = false } = {}) {
  if (replace) location.replace(`#${path}`)
  else location.hash = path
}

/** After an app was renamed, replaces its former slug in the address, if the address is one of that app. */
export function followSlug(former, slug) {
  const [from, to] = [former, slug].map(slug => `/apps/${encodeURIComponent(slug)}/`)
  const { address } = here()
  if (address.startsWith(from)) go(address.replace(from, to), { replace: true })
}

function match(parts, given) {
  if (parts.length !== given.length) return null
  const params = {}
  for (const [nth, part] of parts.entries()) {
    const value = decoded(given[nth])
    if (value === null) return null
    if (part.startsWith(":")) params[part.slice(1)] = value
    else if (part !== value) return null
  }
  return params
}

function decoded(part) {
  try {
    return decodeURIComponent(part)
  } catch {
    return null
  }
}

function isKept({ keeps = [] }, before, after) {
  return keeps.length > 0 && keeps.every(name => before[name] === after[name])
}
