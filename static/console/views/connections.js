// The sessions that have joined topics of an app.

import { announce, el, latest, poll } from "../dom.js"
import { appPath, get, remove } from "../api.js"
import { confirm } from "../dialog.js"
import { say } from "../fields.js"
import { bytes, count, dateTime, plural } from "../format.js"
import { Table } from "../table.js"

const EVERY_MS = 5000
const PAGE = 100
/** The most sessions of one answer. */
const LIMIT_MAX = 1000
const TOPICS_SHOWN = 3
const PROTOCOLS = { phoenix: "Phoenix" }
const TRANSPORTS = { websocket: "WebSocket", longpoll: "long-poll" }

export function connections({ slug, signal }) {
  const table = connectionsTable(ask => disconnect(slug, ask, show))
  const note = el("p", { class: "hint", data: { testid: "connections-note" } }, "Loading…")
  const more = el("button", { class: "button button-quiet", type: "button", hidden: true }, "Show more")
  let limit = PAGE

  const show = latest(
    signal,
    () => get(appPath(slug, `/connections?limit=${limit}`)),
    ({ data, total }) => {
      table.fill(data)
      more.hidden = data.length >= total || limit >= LIMIT_MAX
      say(note, data.length < total ? `showing ${count(data.length)} of ${count(total)}` : `${count(total)} connected`, "plain")
    },
    error => say(note, error.words ?? error.message),
  )
  more.addEventListener("click", () => {
    limit += PAGE
    show()
  })
  poll(signal, EVERY_MS, show)
  return el(
    "section",
    { class: "card", data: { testid: "connections" } },
    el("div", { class: "card-head" }, el("h2", { data: { focus: "" } }, "Connections"), note),
    table.node,
    el("div", { class: "row" }, more),
  )
}

function connectionsTable(onDisconnect) {
  return new Table({
    label: "Connections",
    testid: "connections-table",
    widthMinPx: 900,
    key: ({ id }) => id,
    empty: "No session has joined a topic of this app. When a page joins one, it is listed here within five seconds.",
    columns: [
      { label: "Session", isHeading: true, kind: "code", cell: ({ id }) => id },
      { label: "Users", kind: "codes", cell: ({ subs }) => subs.join(", ") || "–" },
      { label: "Protocol", cell: ({ protocol, vsn }) => `${PROTOCOLS[protocol] ?? protocol} ${vsn ?? ""}` },
      { label: "Transport", cell: ({ transport }) => TRANSPORTS[transport] ?? transport },
      { label: "Address", kind: "code", cell: ({ address }) => address },
      { label: "Since", kind: "time", cell: ({ since }) => dateTime(since) },
      { label: "Topics", kind: "codes", cell: ({ topics }, shown) => topicsOf(topics, shown) },
      { label: "Queue", kind: "number", cell: ({ queue }) => queueOf(queue) },
      {
        label: "Action",
        kind: "actions",
        cell: (item, shown) =>
          shown ??
          el(
            "button",
            {
              class: "button button-quiet button-small",
              type: "button",
              "aria-label": `Disconnect ${item.id}`,
              on: { click: () => onDisconnect(item) },
            },
            "Disconnect",
          ),
      },
    ],
  })
}

/** The frames that wait in a session's queue. */
function queueOf(queue) {
  if (!queue || queue.frames === 0) return "empty"
  return `${plural(queue.frames, "frame")}, ${bytes(queue.bytes)}`
}

/** The first topics, and the number of the others. */
function topicsOf(topics, shown) {
  const words =
    topics.length > TOPICS_SHOWN ? [...topics.slice(0, TOPICS_SHOWN), `and ${count(topics.length - TOPICS_SHOWN)} more`] : topics
  if (shown && shown.dataset.said === words.join("\n")) return shown
  return el(
    "span",
    { class: "topics", data: { said: words.join("\n") } },
    words.map(topic => el("bdi", {}, topic)),
  )
}

function disconnect(slug, { id, address }, onDone) {
  confirm({
    title: "Disconnect this session?",
    words: [
      `The session ${id} from ${address} ends now. A client of phoenix.js connects again by itself; to keep a visitor out, let its tokens expire.`,
    ],
    verb: "Disconnect",
    act: async () => {
      // A session that has already ended need not be disconnected.
      await remove(appPath(slug, `/connections/${encodeURIComponent(id)}`)).catch(error => {
        if (error.status !== 404) throw error
      })
      announce(`The session ${id} was disconnected.`)
      onDone()
    },
  })
}
