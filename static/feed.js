// What arrives: which event it is, what its payload says, and the list that shows it.
//
// Other people wrote all of it, so it becomes text (`textContent`), never markup.

const ENTRIES_MAX = 200
const TEXT_CHARS_MAX = 4000
const BYTES_SHOWN_MAX = 64
const GENERAL = "#general"
const CONTROL_EVENTS = ["presence_state", "presence_diff"]
const CONTROL_PREFIXES = ["phx_", "chan_reply_"]

/** Where an event was published to. */
export const Kind = Object.freeze({
  /** To the channel that the list is about. */
  CHANNEL: "channel",
  /** To another channel of the same scope. */
  ELSEWHERE: "elsewhere",
  /** To every channel of the scope. */
  BROADCAST: "broadcast",
})

/** Whether the protocol itself sent this event; `onMessage` of a channel sees those, too. */
export function isControl(event) {
  return CONTROL_EVENTS.includes(event) || CONTROL_PREFIXES.some(prefix => event.startsWith(prefix))
}

/**
 * Splits what a whole scope hears, `C:event` or `event`, into channel and event.
 *
 * `own` is the channel that the list is about; its name is compared first, since a name may hold a colon.
 */
export function heardOnScope(heard, own = null) {
  if (own !== null && heard.startsWith(`${own}:`)) return { kind: Kind.CHANNEL, event: heard.slice(own.length + 1) }
  const colon = heard.indexOf(":")
  if (colon < 0) return { kind: Kind.BROADCAST, event: heard }
  return { kind: Kind.ELSEWHERE, channel: heard.slice(0, colon), event: heard.slice(colon + 1) }
}

/** Splits what a single channel hears, `event` or `#general:event`. */
export function heardOnChannel(heard) {
  if (heard.startsWith(`${GENERAL}:`)) return { kind: Kind.BROADCAST, event: heard.slice(GENERAL.length + 1) }
  return { kind: Kind.CHANNEL, event: heard }
}

/** A list of the latest events, newest first. It keeps `ENTRIES_MAX` of other channels and as many of all others. */
export class Feed {
  /** `onCount` is told how many events arrived so far, as an object with one count per kind. */
  constructor(list, onCount = () => {}) {
    this.list = list
    this.onCount = onCount
    this.received = { [Kind.CHANNEL]: 0, [Kind.ELSEWHERE]: 0, [Kind.BROADCAST]: 0 }
  }

  /** Shows one event with its payload, and whether it was missed before. */
  add({ kind, channel, event }, payload, { isReplaying = false } = {}) {
    const entry = element("li", "entry")
    entry.dataset.testid = "entry"
    entry.dataset.kind = kind
    entry.append(...facts(kind, channel, event, isReplaying), ...content(payload))
    this.prepend(entry)
    this.received[kind] += 1
    this.onCount(this.received)
  }

  /** Draws a line through the list, such as the moment a connection came back. */
  mark(words) {
    const mark = element("li", "mark", words)
    mark.dataset.testid = "mark"
    this.prepend(mark)
  }

  clear() {
    this.list.replaceChildren()
  }

  prepend(item) {
    this.list.prepend(item)
    const others = `[data-kind="${Kind.ELSEWHERE}"]`
    const group = item.matches(others) ? others : `:not(${others})`
    const kept = this.list.querySelectorAll(`:scope > ${group}`)
    for (let nth = ENTRIES_MAX; nth < kept.length; nth += 1) kept[nth].remove()
  }
}

/** How many events a list about one channel has received, in words. */
export function countWords({ channel, broadcast }) {
  const received = channel + broadcast
  const shown = received > ENTRIES_MAX ? `latest ${ENTRIES_MAX} of ` : ""
  return `${shown}${received} ${received === 1 ? "event" : "events"}`
}

/** The event's name, where it was published to, whether it was recovered, and when it arrived. */
function facts(kind, channel, event, isRecovered) {
  const tags = element("p", "entry-tags")
  tags.append(element("bdi", "entry-event", event))
  if (kind === Kind.BROADCAST) tags.append(element("span", "badge", "to all channels"))
  if (kind === Kind.ELSEWHERE) {
    const where = element("span", "entry-where", "on ")
    where.append(element("bdi", "entry-channel", channel))
    tags.append(where)
  }
  if (isRecovered) tags.append(element("span", "recovered", "recovered"))
  const now = new Date()
  const time = element("time", "entry-time", now.toLocaleTimeString())
  time.dateTime = now.toISOString()
  return [tags, time]
}

/** A person's message with its name, or any other payload as compact JSON. */
function content(payload) {
  const said = reading(payload)
  const text = element("p", "entry-text", cut(said.text))
  text.dataset.form = said.form
  if (said.form === "message") text.dir = "auto"
  return said.name ? [element("bdi", "entry-name", cut(said.name)), text] : [text]
}

function reading(payload) {
  if (payload instanceof ArrayBuffer) return { form: "bytes", text: bytesIn(payload) }
  if (isMessage(payload)) return { form: "message", name: (payload.name ?? "").trim(), text: payload.message }
  return { form: "json", text: JSON.stringify(payload) ?? "" }
}

/** Whether a payload is `{ name, message }`, or `{ message }`, and holds nothing else that would be lost. */
function isMessage(payload) {
  if (typeof payload?.message !== "string") return false
  if (payload.name !== undefined && typeof payload.name !== "string") return false
  return Object.keys(payload).every(key => key === "name" || key === "message")
}

function bytesIn(buffer) {
  const shown = new Uint8Array(buffer.slice(0, BYTES_SHOWN_MAX))
  const digits = Array.from(shown, byte => byte.toString(16).padStart(2, "0")).join(" ")
  const count = `${buffer.byteLength} ${buffer.byteLength === 1 ? "byte" : "bytes"}`
  if (digits === "") return count
  return `${count}: ${digits}${buffer.byteLength > BYTES_SHOWN_MAX ? " …" : ""}`
}

function cut(text) {
  return text.length > TEXT_CHARS_MAX ? `${text.slice(0, TEXT_CHARS_MAX)}…` : text
}

function element(tag, className, text = "") {
  const made = document.createElement(tag)
  made.className = className
  made.textContent = text
  return made
}
