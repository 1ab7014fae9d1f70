// The rows of the live list: as many as there will ever be, made once and filled with texts.

import { el, setText } from "../dom.js"
import { bytes, count, time } from "../format.js"

/** The number of rows of the list. */
export const ROWS = 100

const WORDS = { publication: "publication", join: "join", leave: "leave", refusal: "refused" }

export class EventRows {
  /** `slug` is the app's; `open` is called with the publication whose payload is requested. */
  constructor(slug, open) {
    this.rows = Array.from({ length: ROWS }, () => new EventRow(slug, open))
    this.node = el(
      "ol",
      { class: "events", "aria-label": "Events, newest first", data: { testid: "events" } },
      this.rows.map(({ node }) => node),
    )
  }

  fill(entries) {
    for (const [nth, row] of this.rows.entries()) row.show(entries[nth] ?? null)
  }
}

class EventRow {
  constructor(slug, open) {
    this.entry = null
    this.slug = `${slug}:`
    this.at = el("span", { class: "event-at" })
    this.kind = el("span", { class: "event-kind" })
    this.scope = el("span", { class: "event-scope" })
    this.own = el("span", {})
    this.colon = el("span", { class: "event-colon" })
    this.channel = el("span", {})
    this.slugPart = el("span", { class: "event-slug" }, this.own, this.colon)
    this.topic = el("bdi", { class: "event-topic" }, this.scope, this.slugPart, this.channel)
    this.name = el("bdi", { class: "event-name" })
    this.size = el("span", {})
    this.by = el("span", { class: "event-by" })
    this.button = el("button", { class: "link event-open", type: "button", on: { click: () => open(this.entry) } }, "Payload")
    this.node = el(
      "li",
      { class: "event", hidden: true },
      this.at,
      this.kind,
      this.topic,
      this.name,
      el("span", { class: "event-facts" }, this.size, this.by),
      this.button,
    )
  }

  show(entry) {
    if (entry === this.entry) return
    this.entry = entry
    this.node.hidden = entry === null
    if (entry === null) return
    this.node.dataset.kind = entry.kind
    setText(this.at, time(entry.at))
    setText(this.kind, WORDS[entry.kind] ?? entry.kind)
    this.showTopic(entry.topic ?? entry.call ?? "")
    setText(this.name, entry.event ?? entry.reason ?? entry.sub ?? "")
    setText(this.size, factsOf(entry))
    setText(this.by, originOf(entry))
    const hasPayload = entry.kind === "publication" && Boolean(entry.position)
    this.button.classList.toggle("is-absent", !hasPayload)
    this.button.disabled = !hasPayload
  }

  /** A topic in its parts. The style sheet shortens or hides the app's slug if it leaves too little room for the channel. */
  showTopic(topic) {
    const scopeEnd = topic.indexOf(":") + 1
    const isOwn = topic.startsWith(this.slug, scopeEnd)
    const ownEnd = isOwn ? scopeEnd + this.slug.length : scopeEnd
    setText(this.scope, topic.slice(0, scopeEnd))
    this.slugPart.hidden = !isOwn
    setText(this.own, isOwn ? this.slug.slice(0, -1) : "")
    setText(this.colon, isOwn ? ":" : "")
    setText(this.channel, topic.slice(ownEnd))
    this.topic.title = topic
  }
}

/** The size of a publication and the number of its deliveries; for other events the session. */
function factsOf({ kind, bytes: size, deliveries, address, session }) {
  if (kind === "publication")
    return deliveries === null || deliveries === undefined ? bytes(size) : `${bytes(size)} · to ${count(deliveries)}`
  if (kind === "refusal") return address ?? ""
  return session ?? ""
}

/** The origin of a publication, or the refused attempt if it was not a join. */
function originOf({ by, of }) {
  const word = by ?? (of === "join" ? undefined : of)
  return word ? ` · ${word}` : ""
}
