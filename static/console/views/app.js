// One app: its name, its state, and its tabs. The tabs share this frame, which stays when another tab is opened.

import { el, keepFocus, setText } from "../dom.js"
import { adminPath, appPath, get } from "../api.js"
import { link } from "../router.js"
import { badge, unserved } from "./apps.js"
import { audit } from "./audit.js"
import { channels } from "./channels.js"
import { connections } from "./connections.js"
import { liveEvents } from "./live-events.js"
import { send } from "./send.js"
import { settings } from "./settings.js"
import { usage } from "./usage.js"

const TABS = [
  ["live", "Live", liveEvents],
  ["send", "Send", send],
  ["channels", "Channels", channels],
  ["connections", "Connections", connections],
  ["usage", "Usage", usage],
  ["audit", "Audit", audit],
  ["settings", "Settings", settings],
]

export function app({ params, query, signal, session }) {
  const { slug } = params
  const head = appHead(slug, params.tab, session)
  const place = el("div", { class: "tab" })
  const view = { title: slug, node: el("div", { class: "view" }, head.node, place), update }
  let leaving = null
  let isGone = false

  function update({ tab }, query = new URLSearchParams()) {
    leaving?.abort()
    leaving = new AbortController()
    signal.addEventListener("abort", () => leaving.abort(), { once: true })
    const [, label, open] = TABS.find(([name]) => name === tab) ?? TABS[0]
    head.mark(tab)
    view.title = `${label} · ${slug}`
    place.replaceChildren(isGone ? absent(slug) : open({ slug, query, session, signal: leaving.signal, onApp: head.show }))
  }

  /** Shows in every tab that there is no such app. */
  function end({ status }) {
    if (status !== 404 || signal.aborted) return
    isGone = true
    leaving.abort()
    keepFocus(() => place.replaceChildren(absent(slug)))
  }

  update(params, query)
  loadApp(slug, session).then(head.show, end)
  return view
}

function absent(slug) {
  return el(
    "section",
    { class: "card", data: { testid: "no-app" } },
    el("h2", { data: { focus: "" } }, "There is no such app"),
    el("p", { class: "empty", role: "alert" }, "No app has the slug ", el("code", {}, slug), ": it was renamed or deleted."),
    el("a", { class: "button button-quiet", href: link("apps") }, "Show all apps"),
  )
}

/** Requests the app, through the admin API for the administrator. */
export async function loadApp(slug, session) {
  return (await get(session.as === "admin" ? adminPath(slug) : appPath(slug))).data
}

/** The heading and the tabs of an app. `mark` marks the open tab, and `show` shows the app's data. */
export function appHead(slug, tab, session) {
  const name = el("span", {}, slug)
  const state = el("span", {})
  const note = el("p", { class: "notice", role: "note", hidden: true, data: { testid: "app-note" } })
  const tabs = TABS.map(([tab, label]) => el("a", { href: link("apps", slug, tab), data: { tab } }, label))
  const nav = el("nav", { class: "tabs", "aria-label": "App" }, tabs)
  const back = session.as === "admin" && el("a", { class: "back", href: link("apps") }, "All apps")
  const node = el(
    "header",
    { class: "app-head" },
    back,
    el("h1", {}, name, " ", el("code", { class: "app-slug" }, slug), " ", state),
    nav,
    note,
  )
  const mark = tab => {
    for (const entry of tabs) {
      if (entry.dataset.tab !== tab) entry.removeAttribute("aria-current")
      else entry.setAttribute("aria-current", "page")
    }
    // On a phone the tabs are wider than the screen, so the open tab is scrolled into view.
    requestAnimationFrame(() => scrollToCurrent(nav))
  }
  mark(tab)
  return {
    node,
    mark,
    show: app => {
      name.textContent = app.name
      state.replaceChildren(badge(app))
      const words = unserved(app, session)
      setText(note, words)
      note.hidden = words === ""
    },
  }
}

function scrollToCurrent(nav) {
  const current = nav.querySelector("[aria-current]")
  if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - (nav.clientWidth - current.offsetWidth) / 2
}
