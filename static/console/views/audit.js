// The audit trail of an app: its changes, with author, address and fields.

import { el, load } from "../dom.js"
import { appPath, get } from "../api.js"
import { toTheSecond } from "../format.js"
import { Table } from "../table.js"

const PAGE = 50

export function audit({ slug }) {
  const table = new Table({
    label: "Audit trail",
    testid: "audit-table",
    key: entry => entry.id ?? `${entry.at} ${entry.action}`,
    empty: "No change is recorded yet.",
    columns: [
      { label: "When", isHeading: true, kind: "time", cell: ({ at }) => toTheSecond(at) },
      { label: "Who", cell: ({ actor }) => actor },
      { label: "From", kind: "code", cell: ({ address }) => address ?? "–" },
      { label: "What", cell: ({ action }) => action },
      { label: "Fields", kind: "codes", cell: ({ fields }) => (fields ?? []).join(", ") || "–" },
    ],
  })
  const place = el("div", {}, el("p", { class: "loading" }, "Loading…"))
  const older = el(
    "button",
    { class: "button button-quiet", type: "button", hidden: true, on: { click: () => more() } },
    "Show older",
  )
  let entries = []
  let isWhole = false

  async function ask() {
    const query = new URLSearchParams({ limit: String(PAGE) })
    const last = entries.at(-1)
    if (last) query.set("before", String(last.id ?? last.at))
    const { data } = await get(appPath(slug, `/audit?${query}`))
    entries = [...entries, ...data]
    isWhole = data.length < PAGE
  }

  const show = () => {
    older.hidden = isWhole
    table.fill(entries)
    return table.node
  }
  const more = () => load(place, ask, show)
  more()
  return el(
    "section",
    { class: "card", data: { testid: "audit" } },
    el("h2", { data: { focus: "" } }, "Audit trail"),
    el(
      "p",
      { class: "hint" },
      "Every change to this app, newest first: its author, the address of the request, and the changed fields. Values are not recorded.",
    ),
    place,
    el("div", { class: "row" }, older),
  )
}
