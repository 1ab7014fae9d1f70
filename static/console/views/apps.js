// The list of all apps.

import { el, load, setText } from "../dom.js"
import { get } from "../api.js"
import { count, dateTime, since } from "../format.js"
import { link } from "../router.js"
import { Table } from "../table.js"

export const CLIENT_EVENTS = [
  ["authorized", "clients whose token permits it"],
  ["all", "everyone, on public topics"],
  ["none", "nobody"],
]

/** The most apps that the list shows at once. */
const SHOWN_MAX = 200

export function apps() {
  const table = new Table({
    label: "Apps",
    testid: "apps",
    key: ({ slug }) => slug,
    columns: [
      {
        label: "Name",
        isHeading: true,
        cell: ({ name, slug }, shown) => shown ?? el("a", { href: link("apps", slug, "live") }, name),
      },
      { label: "Slug", kind: "codes", cell: ({ slug }) => slug },
      { label: "State", cell: app => badge(app) },
      { label: "Key last used", cell: ({ key_last_used_at: at }) => (at ? `${since(at)} ago` : "–") },
      { label: "Created", kind: "time", cell: ({ inserted_at }) => dateTime(inserted_at) },
    ],
  })
  const filter = el("input", {
    type: "search",
    id: "app-filter",
    autocapitalize: "none",
    spellcheck: "false",
    data: { testid: "app-filter" },
    on: { input: () => show() },
  })
  const note = el("p", { class: "hint", role: "status", data: { testid: "apps-note" } })
  const place = el("div", { class: "card" }, el("p", { class: "loading" }, "Loading…"))
  let known = []

  function show() {
    const wanted = filter.value.trim().toLowerCase()
    const found = known.filter(({ name, slug }) => `${name.toLowerCase()} ${slug}`.includes(wanted))
    table.fill(found.slice(0, SHOWN_MAX))
    setText(
      table.empty,
      known.length === 0
        ? "There is no app yet. Create one for each application that uses this server."
        : "No app has this in its name or slug.",
    )
    const others = found.length - SHOWN_MAX
    setText(note, others > 0 ? `${count(others)} more. Filter the list to see them.` : "")
  }

  load(
    place,
    async () => (await get("/api/admin/apps")).data,
    found => {
      known = found
      show()
      const label = el("label", { for: "app-filter" }, "Name or slug contains")
      return [el("div", { class: "filters" }, el("div", { class: "filter-text" }, label, filter)), table.node, note]
    },
  )
  const node = el(
    "div",
    { class: "view" },
    el(
      "div",
      { class: "view-head" },
      el("h1", {}, "Apps"),
      el("a", { class: "button", href: link("new-app"), data: { testid: "new-app" } }, "New app"),
    ),
    place,
  )
  return { title: "Apps", node }
}

/** Whether an app is active, as a word with a colour. */
export function badge({ active }) {
  return el("span", { class: "badge", data: { tone: active ? "good" : "muted" } }, active ? "active" : "inactive")
}

/** Whether the server serves the topics of an app: a server for a single app (`single_app`) has no topics of others. */
export const isServed = (slug, { single_app: only }) => only === null || only === slug

/** Says why an app accepts nothing here, or "". Its tabs show what is left of it. */
export function unserved({ active, slug }, session) {
  if (!active) return "This app is inactive: it accepts no event, no join and no login until it is activated again."
  if (isServed(slug, session)) return ""
  return `This server serves the app ${session.single_app} alone (single_app), so it accepts no event and no join of this app.`
}
