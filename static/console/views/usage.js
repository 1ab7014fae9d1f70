// The usage of an app per hour, day or month.

import { el, load, poll } from "../dom.js"
import { appPath, get, serverNow } from "../api.js"
import { Chart } from "../charts.js"
import { bytes, compact, count, period, rate } from "../format.js"
import { Table } from "../table.js"
import { tile } from "./overview.js"

const HOUR_MS = 3_600_000
/** The interval at which the page checks whether the last period that it shows is over. */
const EVERY_MS = 60_000
const RANGES = {
  day: { label: "24 hours", by: "hour", periods: 24 },
  week: { label: "7 days", by: "hour", periods: 7 * 24 },
  month: { label: "30 days", by: "day", periods: 30 },
  year: { label: "12 months", by: "month", periods: 12 },
}
const CHARTS = [
  { label: "Publications", names: [["publications", "Publications", count]], axis: compact },
  { label: "Deliveries", names: [["deliveries", "Deliveries", count]], axis: compact },
  { label: "Peak connections", names: [["connections_peak", "Peak", count]], axis: compact },
  { label: "Bytes delivered", names: [["bytes_out", "Bytes out", bytes]], axis: bytes },
]

export function usage({ slug, signal }) {
  const place = el("div", { class: "report" })
  const csv = el(
    "a",
    {
      class: "button button-quiet button-small",
      data: { testid: "csv" },
      download: "",
      // A click may come after the end of the last period.
      on: { click: () => refer(present().path) },
    },
    "Download CSV",
  )
  const segments = Object.entries(RANGES).map(([range, { label }]) =>
    el(
      "label",
      { class: "segment" },
      el("input", {
        type: "radio",
        name: "range",
        value: range,
        checked: range === "day",
        data: { testid: `range-${range}` },
        on: { change: () => show(range) },
      }),
      el("span", {}, label),
    ),
  )
  let drawn = new AbortController()
  let chosen = "day"
  /** The end of the last period, and the place of the report. */
  let endMs, shown
  signal.addEventListener("abort", () => drawn.abort())

  /** The periods of the chosen range at the present time, and the path that asks for them. */
  function present() {
    const { by, periods } = RANGES[chosen]
    const starts = startsOf(by, periods)
    const [from, to] = [starts[0], starts.at(-1)].map(at => new Date(at).toISOString())
    return { by, starts, path: `${appPath(slug, "/usage")}?${new URLSearchParams({ from, to, by })}` }
  }

  /** Makes the button download what a path answers. */
  function refer(path) {
    csv.href = `${path}&format=csv`
    csv.download = `usage-${slug}-${chosen}.csv`
  }

  function show(range) {
    chosen = range
    // Each range has a place of its own, because the answers may come in another order than the questions.
    shown = el("div", { class: "report" }, el("p", { class: "loading" }, "Loading…"))
    place.replaceChildren(shown)
    ask()
  }

  function ask() {
    drawn.abort()
    drawn = new AbortController()
    const { by, starts, path } = present()
    endMs = starts.at(-1)
    refer(path)
    load(
      shown,
      async () => (await get(path)).data,
      rows => report(rows, by, starts.slice(0, -1), drawn.signal),
    )
  }

  show(chosen)
  poll(signal, EVERY_MS, () => serverNow() < endMs || ask())
  return el(
    "section",
    { class: "usage", data: { testid: "usage" } },
    el(
      "div",
      { class: "card-head" },
      el("h2", { data: { focus: "" } }, "Usage"),
      el("fieldset", { class: "segments segments-small" }, el("legend", { class: "visually-hidden" }, "Range"), segments),
      csv,
    ),
    el("p", { class: "hint" }, "Hours, days and months are those of UTC. The last one is not over yet."),
    place,
  )
}

/**
 * The beginnings of the last `count` hours, days or months, in UTC like the server's counts, and of the next one. The server's clock
 * decides which one is the present one.
 */
function startsOf(by, count) {
  const now = new Date(serverNow())
  const [year, month, date, hour] = [now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate(), now.getUTCHours()]
  const start = {
    hour: ago => Date.UTC(year, month, date, hour) - ago * HOUR_MS,
    day: ago => Date.UTC(year, month, date - ago),
    month: ago => Date.UTC(year, month - ago),
  }[by]
  return Array.from({ length: count + 1 }, (_, nth) => start(count - 1 - nth))
}

/** `load` calls this with the rows of the answer. Periods in which nothing was used have no row. */
function report(rows, by, starts, signal) {
  const known = new Map(rows.map(row => [Date.parse(row.from), row]))
  const charts = CHARTS.map(({ label, names, axis }) => {
    const chart = new Chart({
      label,
      kind: "bars",
      axis,
      by,
      signal,
      series: names.map(([, label, format]) => ({ label, format })),
    })
    chart.show(
      starts.map(at => at / 1000),
      ...names.map(([name]) => starts.map(at => known.get(at)?.[name] ?? 0)),
    )
    return el("section", { class: "card", data: { chart: names[0][0] } }, chart.node)
  })
  const table = usageTable(by)
  table.fill([...rows].reverse())
  return [
    totals(rows),
    el("div", { class: "pair" }, charts),
    el("details", { class: "card details" }, el("summary", { data: { testid: "usage-numbers" } }, "All numbers"), table.node),
  ]
}

function totals(rows) {
  const sum = name => rows.reduce((total, row) => total + (row[name] ?? 0), 0)
  const made = [
    ["Publications", count(sum("publications")), `${bytes(sum("bytes_in"))} in`, "publications"],
    ["Deliveries", count(sum("deliveries")), `${bytes(sum("bytes_out"))} out`, "deliveries"],
    ["Joins", count(sum("joins")), `${count(sum("refused_joins"))} refused`, "joins"],
    [
      "Peak connections",
      count(Math.max(0, ...rows.map(row => row.connections_peak ?? 0))),
      `${count(sum("replayed"))} events replayed`,
      "connections",
    ],
  ]
  return el(
    "div",
    { class: "tiles" },
    made.map(([label, value, detail, testid]) => {
      const { node, show } = tile(label)
      node.dataset.testid = `total-${testid}`
      show(value, detail)
      return node
    }),
  )
}

function usageTable(by) {
  const number = (label, name, format = count) => ({ label, kind: "number", cell: row => format(row[name]) })
  return new Table({
    label: `Usage by ${by}`,
    testid: "usage-table",
    widthMinPx: 860,
    key: ({ from }) => from,
    empty: "Nothing was used in this time. Usage appears here within a minute after the app's first event.",
    columns: [
      { label: "From", isHeading: true, kind: "time", cell: ({ from }) => period(from, by) },
      number("Publications", "publications"),
      number("Deliveries", "deliveries"),
      number("Bytes in", "bytes_in", bytes),
      number("Bytes out", "bytes_out", bytes),
      number("Joins", "joins"),
      number("Refused", "refused_joins"),
      number("Peak", "connections_peak"),
      number("Average", "connections_average", rate),
      number("Replayed", "replayed"),
    ],
  })
}
