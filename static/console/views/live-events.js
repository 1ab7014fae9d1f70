// The live events of an app: publications, joins, leaves and refusals as they happen.
//
// The list has a fixed number of rows, which are filled anew at most once per animation frame, so that nothing moves, however many
// events there are. It does not change while it is paused, while the pointer moves over it, or while the focus is in it.

import { announce, el, setText } from "../dom.js"
import { live } from "../live.js"
import { count, plural, rate } from "../format.js"
import { check } from "../fields.js"
import { EventRows, ROWS } from "./event-rows.js"
import { showPayload } from "./payload.js"

const KEPT_MAX = 1000
/** The time for which the list does not change after the pointer has moved over it. */
const POINTED_MS = 4000
const KINDS = [
  ["publication", "Publications"],
  ["join", "Joins"],
  ["leave", "Leaves"],
  ["refusal", "Refusals"],
]
const STATES = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", ended: "Ended" }
const REASONS = {
  expired: "they are no longer retained",
  epoch: "the server has restarted without its history",
  unknown: "the server does not know the position of this page",
  too_much: "there were too many to replay",
  off: "the server does not retain them",
}

export function liveEvents({ slug, signal }) {
  return new LiveEvents(slug, signal).node
}

class LiveEvents {
  constructor(slug, signal) {
    Object.assign(this, {
      slug,
      signal,
      kept: [],
      waiting: [],
      isPaused: false,
      isPointed: false,
      isFocused: false,
      timers: {},
      isDrawing: false,
      seen: 0,
      dropped: 0,
    })
    this.rows = new EventRows(slug, entry => this.open(entry))
    this.node = el(
      "section",
      { class: "card live", data: { testid: "live" } },
      this.head(),
      this.filters(),
      this.facts(),
      this.list(),
    )
    live.watch(slug, signal, {
      events: batch => this.receive(batch),
      sample: sample => this.sample(sample),
      state: word => this.state(word),
      gap: gap => this.gap(gap),
      renamed: slug => this.renamed(slug),
      ended: () => this.notify("No app has this slug any more, so there are no further events: it was renamed or deleted."),
    })
  }

  head() {
    this.dot = el("span", { class: "state-dot", "aria-hidden": "true" })
    this.word = el("span", {}, STATES.connecting)
    this.status = el(
      "p",
      { class: "state", role: "status", data: { state: "connecting", testid: "live-state" } },
      this.dot,
      this.word,
    )
    this.pauser = el(
      "button",
      {
        class: "button button-quiet button-small pause",
        type: "button",
        "aria-pressed": "false",
        data: { testid: "pause" },
        on: { click: () => this.pause(!this.isPaused) },
      },
      "Pause",
    )
    const clear = el(
      "button",
      { class: "button button-quiet button-small", type: "button", data: { testid: "clear" }, on: { click: () => this.clear() } },
      "Clear",
    )
    return el(
      "div",
      { class: "card-head" },
      el("h2", { data: { focus: "" } }, "Live events"),
      this.status,
      el("div", { class: "row" }, this.pauser, clear),
    )
  }

  filters() {
    const draw = () => this.draw()
    this.kinds = new Map(
      KINDS.map(([kind, label]) => [
        kind,
        check({ label, name: kind, checked: true, testid: `kind-${kind}`, on: { change: draw } }),
      ]),
    )
    this.text = el("input", {
      type: "search",
      id: "live-filter",
      placeholder: "room-1, msg, …",
      autocapitalize: "none",
      spellcheck: "false",
      data: { testid: "filter" },
      on: { input: draw },
    })
    return el(
      "div",
      { class: "filters" },
      el("div", { class: "filter-text" }, el("label", { for: "live-filter" }, "Topic, event, user or reason contains"), this.text),
      el(
        "fieldset",
        { class: "checks" },
        el("legend", { class: "visually-hidden" }, "Kinds of events"),
        [...this.kinds.values()].map(({ node }) => node),
      ),
    )
  }

  facts() {
    this.rates = el("span", { class: "rates" }, "Waiting for the first figures")
    this.shown = el("span", { data: { testid: "shown" } })
    this.notice = el("p", { class: "notice", role: "status", hidden: true, data: { testid: "gap" } })
    return el("div", { class: "facts-frame" }, el("p", { class: "facts" }, this.rates, this.shown), this.notice)
  }

  list() {
    this.empty = el(
      "p",
      { class: "empty live-empty" },
      "Nothing has happened yet. Send an event under “Send”, or let a page join a topic of this app.",
    )
    const frame = el("div", { class: "live-frame" }, this.rows.node, this.empty)
    frame.addEventListener("pointermove", ({ pointerType }) => pointerType === "mouse" && this.hold("isPointed", POINTED_MS))
    frame.addEventListener("pointerleave", () => this.hold("isPointed", 0))
    frame.addEventListener("focusin", () => this.hold("isFocused", Infinity))
    frame.addEventListener("focusout", () => this.hold("isFocused", 0))
    return frame
  }

  /** Stops changes of the list for some time, for one of two reasons; 0 permits them again. */
  hold(reason, ms) {
    clearTimeout(this.timers[reason])
    this[reason] = ms > 0
    if (ms > 0 && ms < Infinity) this.timers[reason] = setTimeout(() => this.hold(reason, 0), ms)
    this.draw()
  }

  /** Takes a batch of the feed. While the list must not change, only the newest entries are kept for later. */
  receive({ events, dropped }) {
    this.seen += events.length + dropped
    this.dropped += dropped
    this.waiting = [...this.waiting, ...events].slice(-KEPT_MAX)
    this.draw()
  }

  sample({ sessions, publications, deliveries }) {
    setText(this.rates, `${plural(sessions, "session")}, ${rate(publications)} publications/s, ${rate(deliveries)} deliveries/s`)
  }

  state(word) {
    this.status.dataset.state = word
    setText(this.word, STATES[word])
  }

  gap({ complete, reason, replayed, ms }) {
    const seconds = Math.max(1, Math.round(ms / 1000))
    const lost = `The connection was lost for ${plural(seconds, "second")}`
    const late = replayed > 0 ? `: ${plural(replayed, "message")} of the feed came late` : ""
    this.notify(
      complete
        ? `${lost}. Nothing that the server reported is missing${late}.`
        : `${lost}, and events are missing here: ${REASONS[reason] ?? reason}.`,
    )
  }

  notify(words) {
    this.notice.textContent = words
    this.notice.hidden = false
  }

  /** Changes the console to the new slug of a renamed app. */
  renamed(slug) {
    announce(`The app was renamed. Its slug is ${slug} now.`)
    this.state("connecting")
    this.status.dispatchEvent(new CustomEvent("renamed", { bubbles: true, detail: slug }))
  }

  pause(isPaused) {
    this.isPaused = isPaused
    this.pauser.setAttribute("aria-pressed", String(isPaused))
    this.pauser.textContent = isPaused ? "Resume" : "Pause"
    announce(isPaused ? "The list is paused." : "The list continues.")
    this.draw()
  }

  clear() {
    Object.assign(this, { kept: [], waiting: [], seen: 0, dropped: 0 })
    this.notice.hidden = true
    this.draw()
  }

  /** Draws with the next animation frame, no matter how often it is called until then. */
  draw() {
    if (this.isDrawing) return
    this.isDrawing = true
    requestAnimationFrame(() => {
      this.isDrawing = false
      if (!this.signal.aborted) this.drawNow()
    })
  }

  drawNow() {
    const holds = this.isPaused || (this.kept.length > 0 && (this.isPointed || this.isFocused))
    if (!holds && this.waiting.length > 0) {
      this.kept = [...this.kept, ...this.waiting].slice(-KEPT_MAX)
      this.waiting = []
    }
    const wanted = this.kept.filter(entry => this.wants(entry))
    const newest = wanted.slice(-ROWS).reverse()
    this.rows.fill(newest)
    this.empty.hidden = this.kept.length > 0
    this.status.dataset.held = holds
    setText(this.shown, this.words(newest.length, wanted.length))
  }

  wants({ kind, topic, event, reason, sub, call }) {
    if (!this.kinds.get(kind)?.control.checked) return false
    const text = this.text.value.trim()
    return text === "" || [topic, event, reason, sub, call].some(part => part?.includes(text))
  }

  /** Shows how many of the events the list has, and why others are missing. */
  words(shown, wanted) {
    if (this.seen === 0) return ""
    const said = [`showing ${count(shown)} of ${count(this.seen)}`]
    if (wanted < this.kept.length) said.push(`${count(this.kept.length - wanted)} filtered out`)
    if (this.dropped > 0) said.push(`${count(this.dropped)} left out by the server, which sends a sample`)
    if (this.waiting.length > 0)
      said.push(`${count(this.waiting.length)} waiting${this.isPaused ? "" : " while you use the list"}`)
    return said.join(" · ")
  }

  open(entry) {
    const pausedBefore = this.isPaused
    this.isPaused = true
    showPayload(this.slug, entry, {
      onClose: () => {
        this.isPaused = pausedBefore
        this.draw()
      },
    })
  }
}
