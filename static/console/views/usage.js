// The usage of an app per hour, day or month.

import { el, load } from "../dom.js"
import { appPath, get } from "../api.js"
import { Chart } from "../charts.js"
import { bytes, compact, count, dateTime, rate } from "../format.js"
import { Table } from "../table.js"
import { tile } from "./overview.js"

const HOUR_MS = 3_600_000
const DAY_MS = 24 * HOUR_MS
const RANGES = {
  day: { label: "24 hours", by: "hour", ms: DAY_MS },
  week: { label: "7 days", by: "hour", ms: 7 * DAY_MS },
  month: { label: "30 days", by: "day", ms: 30 * DAY_MS },
  year: { label: "12 months", by: "month", ms: 365 * DAY_MS },
}
const CHARTS = [
  { label: "Publications", names: [["publications", "Publications", count]], axis: compact },
  { label: "Deliveries", names: [["deliveries", "Deliveries", count]], axis: compact },
  { label: "Peak connections", names: [["connections_peak", "Peak", count]], axis: compact },
  { label: "Bytes delivered", names: [["bytes_out", "Bytes out", bytes]], axis: bytes },
]

export function usage({ slug, signal }) {
  const place = el("div", { class: "report" })
  const csv = el("a", { class: "button button-quiet button-small", data: { testid: "csv" }, download: "" }, "Download CSV")
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
  signal.addEventListener("abort", () => drawn.abort())

  function show(range) {
    drawn.abort()
    drawn = new AbortController()
    const query = queryOf(RANGES[range])
    csv.href = `${appPath(slug, "/usage")}?${query}&format=csv`
    csv.download = `usage-${slug}-${range}.csv`
    place.replaceChildren(el("p", { class: "loading" }, "Loading…"))
    load(
      place,
      async () => (await get(`${appPath(slug, "/usage")}?${query}`)).data,
      rows => report(rows, RANGES[range], drawn.signal),
    )
  }

  show("day")
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
    place,
  )
}

/** The range in whole hours, days or months, up to and including the present one. */
function queryOf({ by, ms }) {
  return new URLSearchParams({ from: begin(new Date(Date.now() - ms), by).toISOString(), by })
}

/** The beginning of the hour, day or month of a moment, in UTC like the server's counts. */
function begin(moment, by) {
  const at = new Date(moment)
  at.setUTCMinutes(0, 0, 0)
  if (by !== "hour") at.setUTCHours(0)
  if (by === "month") at.setUTCDate(1)
  return at
}

/** `load` calls this with the rows of the answer. */
function report(rows, range, signal) {
  const steps = stepsOf(range, rows)
  const charts = CHARTS.map(({ label, names, axis }) => {
    const chart = new Chart({
      label,
      kind: "bars",
      axis,
      moment: dateTime,
      signal,
      series: names.map(([, label, format]) => ({ label, format })),
    })
    chart.show(
      steps.map(({ at }) => at / 1000),
      ...names.map(([name]) => steps.map(({ row }) => row?.[name] ?? 0)),
    )
    return el("section", { class: "card", data: { chart: names[0][0] } }, chart.node)
  })
  const table = usageTable(range)
  table.fill([...rows].reverse())
  return [
    totals(rows),
    el("div", { class: "pair" }, charts),
    el("details", { class: "card details" }, el("summary", { data: { testid: "usage-numbers" } }, "All numbers"), table.node),
  ]
}

/** All periods of the range, including those without a row. */
function stepsOf({ by, ms }, rows) {
  const known = new Map(rows.map(row => [new Date(row.from).getTime(), row]))
  const steps = []
  const end = Date.now()
  for (let at = begin(new Date(end - ms), by); at.getTime() <= end; at = next(at, by))
    steps.push({ at: at.getTime(), row: known.get(at.getTime()) })
  return steps
}

function next(at, by) {
  if (by === "month") return new Date(Date.UTC(at.getUTCFullYear(), at.getUTCMonth() + 1))
  return new Date(at.getTime() + (by === "day" ? DAY_MS : HOUR_MS))
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

function usageTable({ by }) {
  const number = (label, name, format = count) => ({ label, kind: "number", cell: row => format(row[name]) })
  return new Table({
    label: `Usage by ${by}`,
    testid: "usage-table",
    widthMinPx: 860,
    key: ({ from }) => from,
    empty: "Nothing was used in this time. Usage appears here within a minute after the app's first event.",
    columns: [
      { label: "From", isHeading: true, kind: "time", cell: ({ from }) => dateTime(from) },
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
