// One channel, or a whole scope: its subscribers, its members, and its retained publications.

import { announce, el, latest, load, poll, setText } from "../dom.js"
import { appPath, channelPath, exactly, get, post } from "../api.js"
import { confirm } from "../dialog.js"
import { say } from "../fields.js"
import { bytes, count, plural, time, toTheSecond } from "../format.js"
import { link } from "../router.js"
import { appHead, loadApp } from "./app.js"
import { isServed } from "./apps.js"
import { list, payloadBlock } from "./payload.js"

const EVERY_MS = 5000
const encoder = new TextEncoder()

export function channel({ params, signal, session }) {
  const { slug, scope, channel: name } = params
  const path = name === undefined ? appPath(slug, `/channels/${encodeURIComponent(scope)}`) : channelPath(slug, scope, name)
  const head = appHead(slug, "channels", session)
  loadApp(slug, session).then(head.show, () => {})
  const title = el(
    "h2",
    { class: "mono", data: { focus: "" } },
    name === undefined ? `${scope} (the whole scope)` : `${scope} · ${name}`,
  )
  const facts = { subscribers: el("span", {}, "–"), position: el("span", { class: "mono" }, "–") }
  const members = el("div", {})
  const note = el("p", { class: "note" })
  let topic = null

  const ask = () => get(path)
  const show = ({ data }) => {
    topic = data.topic
    say(note, "")
    setText(facts.subscribers, count(data.subscribers))
    setText(facts.position, data.position ?? "–")
    if (data.members) showMembers(members, data.members)
  }
  poll(signal, EVERY_MS, latest(signal, ask, show, error => say(note, error.words ?? error.message)))

  // On a server that does not serve the app, no topic belongs to it, so it has no joins.
  const end =
    isServed(slug, session) &&
    el(
      "button",
      {
        class: "button button-quiet button-small",
        type: "button",
        data: { testid: "end-joins" },
        on: { click: () => topic && endJoins(slug, topic) },
      },
      "End all joins",
    )
  const sendHref = `${link("apps", slug, "send")}?${new URLSearchParams({ scope, channel: name ?? "#general" })}`
  const node = el(
    "div",
    { class: "view" },
    head.node,
    el(
      "div",
      { class: "tab" },
      el(
        "section",
        { class: "card", data: { testid: "channel" } },
        el(
          "div",
          { class: "card-head" },
          title,
          el("div", { class: "row" }, el("a", { class: "button button-quiet button-small", href: sendHref }, "Send to it"), end),
        ),
        list([
          ["Subscribers", facts.subscribers],
          ["Position", facts.position],
        ]),
        members,
        note,
      ),
      name !== undefined && historyCard(slug, scope, name),
    ),
  )
  return { title: `${name ?? scope} · ${slug}`, node }
}

function endJoins(slug, topic) {
  confirm({
    title: "End all joins?",
    words: [
      `All sessions that have joined ${topic} lose this join. Clients of phoenix.js join again by themselves if their token is still valid.`,
    ],
    verb: "End all joins",
    act: async () => {
      const { ended } = await post(appPath(slug, "/disconnect"), { topic, count: true })
      announce(ended === null ? "The joins end." : `${plural(ended, "join")} ended.`)
    },
  })
}

/** The members as clients receive them: by key, each with its metas. */
function showMembers(place, members) {
  const entries = Object.entries(members)
  const words = entries.map(([key, { metas = [] }]) =>
    el("li", {}, el("bdi", { class: "mono" }, key), metas.length > 1 ? ` (${metas.length} sessions)` : ""),
  )
  place.replaceChildren(el("h3", {}, plural(entries.length, "member")), el("ul", { class: "members" }, words))
}

/** The retained events. They contain payloads, so they are requested only after a click. */
function historyCard(slug, scope, name) {
  const place = el("div", {})
  const button = el(
    "button",
    { class: "button button-quiet button-small", type: "button", data: { testid: "show-history" } },
    "Show",
  )
  button.addEventListener("click", () => {
    button.textContent = "Show the latest"
    load(place, () => get(channelPath(slug, scope, name, "/history"), { read: exactly }), historyList)
  })
  return el(
    "section",
    { class: "card", data: { testid: "history" } },
    el("div", { class: "card-head" }, el("h2", {}, "Retained history"), button),
    el("p", { class: "hint" }, "The newest events that Herald retains for this channel, with their payloads."),
    place,
  )
}

function historyList({ data }) {
  if (data.length === 0)
    return el("p", { class: "empty" }, "Nothing is retained. The app's settings decide how much is retained, and for how long.")
  const entries = [...data].reverse().map(publication =>
    el(
      "li",
      { data: { testid: "retained" } },
      el(
        "details",
        { class: "retained" },
        el(
          "summary",
          {},
          el("span", { class: "event-at" }, time(publication.time)),
          el("bdi", { class: "event-name" }, publication.event),
          publication.topic === "#general" && el("span", { class: "badge", data: { tone: "gold" } }, "to everyone"),
          el("span", { class: "event-facts" }, bytes(sizeOf(publication))),
        ),
        list([
          ["Event", publication.event],
          ["Accepted", toTheSecond(publication.time)],
          ["Position", publication.position],
        ]),
        payloadBlock(publication),
      ),
    ),
  )
  return el("ol", { class: "plain" }, entries)
}

function sizeOf({ payload, payload_base64: base64 }) {
  return base64 === undefined
    ? encoder.encode(JSON.stringify(payload)).length
    : Math.floor(base64.replace(/=+$/, "").length * 0.75)
}
