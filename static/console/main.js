// Starts the console: asks for the present login, shows the sections of that login, and starts the router.

import { announce, el } from "./dom.js"
import { get, network, post } from "./api.js"
import { go, here, link, Router } from "./router.js"
import { closeDialogs } from "./dialog.js"
import { live } from "./live.js"
import { login } from "./views/login.js"
import { overview } from "./views/overview.js"
import { apps } from "./views/apps.js"
import { newApp } from "./views/new-app.js"
import { app } from "./views/app.js"
import { channel } from "./views/channel.js"
import { description } from "./views/description.js"

const LOGIN = "/login"
/** The interval at which the page checks whether a server that did not answer is reachable again. */
const ASK_EVERY_MS = 3000

/** The present login: `{ as, app, expires_at, single_app }`, or null. */
let session = null
/** Asks for the present login, and repeats that while the server does not answer. */
let asking = null

const isAdmin = () => session?.as === "admin"
const isTheirs = ({ slug }) => isAdmin() || session?.app === slug

const routes = [
  { path: LOGIN, view: ({ query }) => login({ onSession: found => enter(found, query.get("next")) }) },
  { path: "/", view: () => redirect(home()) },
  { path: "/overview", view: permitted(isAdmin, overview) },
  { path: "/apps", view: permitted(isAdmin, apps) },
  { path: "/new-app", view: permitted(isAdmin, newApp) },
  { path: "/api", view: permitted(() => session !== null, description) },
  { path: "/apps/:slug", view: ({ params }) => redirect(`/apps/${encodeURIComponent(params.slug)}/live`) },
  { path: "/apps/:slug/:tab", view: permitted(isTheirs, app), keeps: ["slug"] },
  { path: "/apps/:slug/channels/:scope", view: permitted(isTheirs, channel) },
  { path: "/apps/:slug/channels/:scope/:channel", view: permitted(isTheirs, channel) },
]

/** Redirects a login that may not see a view to the first view of that login. The server refuses its calls in any case. */
function permitted(may, view) {
  return context => (may(context.params) ? view(context) : redirect(session === null ? loginFor(here().path) : home()))
}

const content = document.getElementById("content")
const router = new Router(content, routes, () => session)

/** The login that leads back to a path. */
function loginFor(path) {
  return path === "/" ? LOGIN : `${LOGIN}?next=${encodeURIComponent(path)}`
}

/** The first view of each login. */
function home() {
  if (session === null) return LOGIN
  return session.as === "admin" ? "/overview" : `/apps/${encodeURIComponent(session.app)}/live`
}

function redirect(path) {
  queueMicrotask(() => go(path, { replace: true }))
  return { title: "Console", node: el("p", {}), isRedirect: true }
}

function enter(found, next) {
  session = found
  showAccount()
  // `next` is a path after `#`, so it cannot lead to another site.
  go(next?.startsWith("/") && next !== LOGIN ? next : home(), { replace: true })
}

/** Closes the session's connections, and shows a login that returns to the present view. */
function leave({ next } = {}) {
  session = null
  router.close()
  live.close()
  showAccount()
  go(next ? loginFor(next) : LOGIN, { replace: true })
}

function expire() {
  const { path } = here()
  if (session === null || path === LOGIN) return
  leave({ next: path })
  announce("Your session has ended. Log in again to continue.")
}

async function logOut() {
  try {
    await post("/console/logout", {})
  } catch (error) {
    // A session that has already ended needs no logout.
    if (!error.isExpired) return announce(error.message)
  }
  leave()
  announce("You are logged out.")
}

/** Shows the sections in the header, and the name of the login. */
function showAccount() {
  const sections = document.getElementById("sections")
  const isIn = session !== null
  document.getElementById("account").hidden = !isIn
  sections.hidden = !isIn
  if (!isIn) return
  document.getElementById("account-name").textContent = isAdmin() ? "Administrator" : session.app
  const entries = isAdmin()
    ? [
        ["Overview", link("overview")],
        ["Apps", link("apps")],
      ]
    : [["App", link("apps", session.app, "live")]]
  sections.replaceChildren(...[...entries, ["API", link("api")]].map(([words, href]) => el("a", { href }, words)))
  markSection(here().path)
}

/** Marks the section of the present view. */
function markSection(path) {
  const first = path.split("/")[1]
  const section = first === "new-app" ? "apps" : first
  for (const entry of document.querySelectorAll("#sections a")) {
    if (entry.hash.split("/")[1] === section) entry.setAttribute("aria-current", "true")
    else entry.removeAttribute("aria-current")
  }
}

function wire() {
  document.getElementById("logout").addEventListener("click", logOut)
  document.getElementById("skip").addEventListener("click", click => {
    click.preventDefault()
    content.focus()
  })
  content.addEventListener("shown", ({ detail }) => markSection(detail))
  content.addEventListener("renamed", ({ detail }) => (isAdmin() ? goToLive(detail) : follow()))
  addEventListener("hashchange", closeDialogs)
  network.addEventListener("expired", expire)
  network.addEventListener("missing", follow)
  network.addEventListener("unreachable", lose)
  network.addEventListener("reachable", regain)
}

/** Goes to the live events of an app. */
function goToLive(slug) {
  go(`/apps/${encodeURIComponent(slug)}/live`, { replace: true })
}

/** Changes the views of an app's login to the present slug of its app, if the app was renamed. */
async function follow() {
  if (session?.as !== "app") return
  const { app: before } = session
  const found = (await get("/console/session").catch(() => null))?.data
  if (!found || found.app === before || session?.app !== before) return
  session = found
  showAccount()
  const slugs = [before, found.app].map(slug => `/apps/${encodeURIComponent(slug)}/`)
  go(here().path.replace(...slugs), { replace: true })
  announce(`The app was renamed. Its slug is ${found.app} now.`)
}

/** Shows that the server does not answer, and asks until it does, because not every view asks repeatedly. */
function lose() {
  document.getElementById("unreachable").hidden = false
  asking ??= setInterval(() => get("/console/session", { mayBeRefused: session === null }).catch(() => {}), ASK_EVERY_MS)
}

function regain() {
  document.getElementById("unreachable").hidden = true
  clearInterval(asking)
  asking = null
}

async function start() {
  wire()
  try {
    session = (await get("/console/session", { mayBeRefused: true })).data
  } catch {
    // Without a login, every view redirects to the login.
  }
  showAccount()
  router.start()
}

start()
