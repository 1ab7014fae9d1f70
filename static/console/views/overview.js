// The overview: the sessions, rates and limits of all nodes, now and in the last hour.

import { el, latest, poll, setText } from "../dom.js"
import { get } from "../api.js"
import { Chart } from "../charts.js"
import { say } from "../fields.js"
import { compact, count, dateTime, rate } from "../format.js"
import { Table } from "../table.js"

const EVERY_MS = 5000

export function overview({ signal }) {
  const tiles = {
    sessions: tile("Sessions", { isVaried: true }),
    apps: tile("Apps"),
    publications: tile("Publications/s"),
    deliveries: tile("Deliveries/s"),
  }
  const chart = (label, word, format) =>
    new Chart({ label, axis: compact, signal, series: [{ label: word, format }] })
  const charts = {
    sessions: chart("Sessions", "Sessions", count),
    publications: chart("Publications", "Per second", rate),
    deliveries: chart("Deliveries", "Per second", rate),
  }
  const nodes = nodesTable()
  const limits = limitsTable()
  const note = el("p", { class: "note", role: "status" })
  const figures = el(
    "div",
    { class: "report", data: { testid: "figures" } },
    el(
      "div",
      { class: "tiles" },
      Object.values(tiles).map(({ node }) => node),
    ),
    el(
      "div",
      { class: "charts" },
      Object.values(charts).map(({ node }) => el("section", { class: "card" }, node)),
    ),
    el("div", { class: "pair" }, section("Nodes", nodes.node), section("Limits that were hit since the start", limits.node)),
  )
  const node = el(
    "div",
    { class: "view", data: { testid: "overview" } },
    el("h1", {}, "Overview"),
    note,
    figures,
  )

  const ask = async () => (await get("/api/admin/overview")).data
  const show = ({ now, limits: hits, nodes: known, samples }) => {
    say(note, "")
    figures.hidden = false
    showTiles(tiles, now)
    const times = samples.sessions.map((_, nth) => Date.parse(samples.from) / 1000 + nth * samples.every_seconds)
    for (const [name, chart] of Object.entries(charts)) chart.show(times, samples[name])
    nodes.fill(known)
    limits.fill(hits.filter(({ hits }) => hits > 0))
  }
  const fail = ({ status, message }) => {
    // The page itself says that the server cannot be reached, and that it shows what it knew last.
    if (status === 0) return
    say(note, status === 503 ? "There are no figures now, because a server or the database does not answer." : message)
    figures.hidden = true
  }
  poll(signal, EVERY_MS, latest(signal, ask, show, fail))
  return { title: "Overview", node }
}

/**
 * A large number with its name, and a second line below it. If the length of that line varies, a narrow tile has room for several
 * lines, so that nothing below it moves.
 */
export function tile(label, { isVaried = false } = {}) {
  const value = el("p", { class: "tile-value" }, "–")
  const detail = el("p", { class: "tile-detail" })
  const properties = { class: isVaried ? "tile tile-varied" : "tile", data: { testid: "tile" } }
  const node = el("div", properties, el("h2", { class: "tile-label" }, label), value, detail)
  return { node, show: (text, words = "") => [setText(value, text), setText(detail, words)] }
}

export function section(title, ...children) {
  return el("section", { class: "card" }, el("h2", {}, title), children)
}

function showTiles(tiles, now) {
  const { websocket, longpoll } = now.sessions
  const { pusher } = now.protocols
  tiles.sessions.show(
    count(websocket + longpoll),
    `Phoenix: ${count(websocket - pusher)}\u00a0WebSocket, ${count(longpoll)}\u00a0long\u2011poll. Pusher: ${count(pusher)}`,
  )
  tiles.apps.show(count(now.apps))
  tiles.publications.show(rate(now.publications_per_second))
  tiles.deliveries.show(rate(now.deliveries_per_second))
}

function nodesTable() {
  return new Table({
    label: "Nodes",
    testid: "nodes",
    widthMinPx: 420,
    key: ({ id }) => id,
    empty: "No node has reported yet.",
    columns: [
      { label: "Node", isHeading: true, kind: "code", cell: ({ id }) => id },
      { label: "Version", cell: ({ version }) => version },
      { label: "Started", kind: "time", cell: ({ started_at }) => dateTime(started_at) },
      {
        label: "Sessions",
        kind: "number",
        cell: ({ sessions }) => count(typeof sessions === "object" ? sessions.websocket + sessions.longpoll : sessions),
      },
    ],
  })
}

function limitsTable() {
  return new Table({
    label: "Limits that were hit",
    testid: "limits",
    widthMinPx: 320,
    key: ({ limit }) => limit,
    empty: "No limit was hit. When clients reach one, it is listed here; the page on limits says what each one means.",
    columns: [
      { label: "Limit", isHeading: true, kind: "codes", cell: ({ limit }) => limit },
      { label: "Times", kind: "number", cell: ({ hits }) => count(hits) },
    ],
  })
}
