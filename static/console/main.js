// Starts the console: asks for the present login, shows the sections of that login, and starts the router.

import { announce, attempt, dropNotice, el, keepFocus, notify, pause } from "./dom.js"
import { beginSession, endSession, get, network, post } from "./api.js"
import { followSlug, go, here, link, Router } from "./router.js"
import { closeDialogs } from "./dialog.js"
import { dropDrafts } from "./fields.js"
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

/** The present login: `{ as, app, app_id, expires_at, single_app }`, or null. */
let session = null
/** The login whose session has ended, until the next login. */
let former = null
/** Whether the page asks whether the server is reachable again. */
let isAsking = false

/** Tells the other windows of this browser, which share its cookie, that somebody has logged in or out. */
const windows = new BroadcastChannel("herald-console")

const isSame = (one, other) => one?.as === other?.as && one?.app_id === other?.app_id
const isAdmin = () => session?.as === "admin"
const isTheirs = ({ slug }) => isAdmin() || session?.app === slug

const routes = [
  { path: LOGIN, view: ({ query }) => login({ onSession: found => logIn(found, query.get("next")) }) },
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
  return context => (may(context.params) ? view(context) : redirect(session === null ? loginFor(here().address) : home()))
}

const content = document.getElementById("content")
const router = new Router(content, routes, () => session)

/** The login that leads back to an address. */
function loginFor(address) {
  return address === "/" ? LOGIN : `${LOGIN}?next=${encodeURIComponent(address)}`
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

function logIn(found, next) {
  enter(found, next)
  windows.postMessage("login")
}

function enter(found, next) {
  notify("")
  beginSession()
  // Inputs that one party has typed are not shown to another.
  if (!isSame(found, former)) dropDrafts()
  session = found
  showAccount()
  // `next` is an address after `#`, so it cannot lead to another site.
  go(next?.startsWith("/") && next !== LOGIN ? next : home(), { replace: true })
}

/** Closes the session's connections, and shows a login that returns to the present view. */
function leave({ next } = {}) {
  former = next ? session : null
  if (!next) dropDrafts()
  session = null
  endSession()
  router.close()
  live.close()
  showAccount()
  go(next ? loginFor(next) : LOGIN, { replace: true })
}

function expire() {
  const { path, address } = here()
  if (session === null || path === LOGIN) return
  leave({ next: address })
  notify("Your session has ended. Log in again to continue.")
}

const logOut = () =>
  attempt(async () => {
    await post("/console/logout", {}, { isWrite: false }).catch(error => {
      // A session that has already ended needs no logout.
      if (!error.isExpired) throw error
    })
    leave()
    windows.postMessage("logout")
    announce("You are logged out.")
  })

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
  document.getElementById("notice-close").addEventListener("click", () => keepFocus(() => notify("")))
  document.getElementById("skip").addEventListener("click", click => {
    click.preventDefault()
    content.focus()
  })
  content.addEventListener("shown", ({ detail }) => {
    markSection(detail)
    dropNotice()
  })
  content.addEventListener("renamed", ({ detail }) => (isAdmin() ? goToLive(detail) : compare()))
  addEventListener("hashchange", closeDialogs)
  network.addEventListener("expired", expire)
  network.addEventListener("forbidden", compare)
  windows.addEventListener("message", compare)
  document.addEventListener("visibilitychange", () => document.hidden || compare())
  network.addEventListener("unreachable", lose)
  network.addEventListener("reachable", regain)
}

/** Goes to the live events of an app. */
function goToLive(slug) {
  go(`/apps/${encodeURIComponent(slug)}/live`, { replace: true })
}

/**
 * Compares the page's login with that of the browser's cookie. Its app may have another slug now, or somebody may have logged in
 * as another party in another window, which ends the page's session.
 */
async function compare() {
  const before = session
  if (before === null) return
  const found = (await get("/console/session").catch(() => null))?.data
  if (!found || session !== before) return
  if (!isSame(found, before)) return adopt(found)
  if (found.app === before.app) return
  session = found
  showAccount()
  followSlug(before.app, found.app)
  announce(`The app was renamed. Its slug is ${found.app} now.`)
}

/** Changes the page to the login that another window has begun. */
function adopt(found) {
  leave()
  enter(found)
  const party = isAdmin() ? "the administrator" : `the app ${found.app}`
  notify(`Somebody has logged in as ${party} in this browser. This page shows that login now.`)
}

/** Shows that the server does not answer, and asks until it does, because not every view asks repeatedly. */
async function lose() {
  const banner = document.getElementById("unreachable")
  banner.hidden = false
  if (isAsking) return
  isAsking = true
  while (!banner.hidden) {
    await pause(ASK_EVERY_MS)
    await get("/console/session", { mayBeRefused: session === null }).catch(() => {})
  }
  isAsking = false
}

function regain() {
  document.getElementById("unreachable").hidden = true
}

/** Asks for the login of the browser's cookie until the server knows the answer: only 401 means that there is none. */
async function present() {
  for (;;) {
    try {
      return (await get("/console/session", { mayBeRefused: true })).data
    } catch (error) {
      if (error.status === 401) return null
      // The banner already says that a server cannot be reached.
      notify(error.status === 0 ? "" : `${error.message} The page asks again by itself.`)
      await pause(ASK_EVERY_MS)
    }
  }
}

async function start() {
  wire()
  session = await present()
  notify("")
  showAccount()
  router.start()
}

start()
