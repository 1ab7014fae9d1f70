// The list of all apps.

import { el, load } from "../dom.js"
import { get } from "../api.js"
import { dateTime, since } from "../format.js"
import { link } from "../router.js"
import { Table } from "../table.js"

export const CLIENT_EVENTS = [
  ["authorized", "clients whose token permits it"],
  ["all", "everyone, on public topics"],
  ["none", "nobody"],
]

export function apps() {
  const table = new Table({
    label: "Apps",
    testid: "apps",
    key: ({ slug }) => slug,
    empty: "There is no app yet. Create one for each application that uses this server.",
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
  const place = el("div", { class: "card" }, el("p", { class: "loading" }, "Loading…"))
  load(
    place,
    async () => (await get("/api/admin/apps")).data,
    found => {
      table.fill(found)
      return table.node
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
