// The channels of an app that have subscribers now.

import { el, latest, poll } from "../dom.js"
import { appPath, get } from "../api.js"
import { say } from "../fields.js"
import { count } from "../format.js"
import { go, link } from "../router.js"
import { Table } from "../table.js"

const EVERY_MS = 5000
const PAGE = 100
/** The most channels of one answer. */
const LIMIT_MAX = 10_000

export function channels({ slug, signal }) {
  const scope = el("input", {
    type: "search",
    id: "scope-filter",
    placeholder: "public",
    autocapitalize: "none",
    spellcheck: "false",
    data: { testid: "scope-filter" },
  })
  const prefix = el("input", {
    type: "search",
    id: "prefix-filter",
    placeholder: "room-",
    autocapitalize: "none",
    spellcheck: "false",
    data: { testid: "prefix-filter" },
  })
  const table = channelsTable(slug)
  const note = el("p", { class: "hint", data: { testid: "channels-note" } }, "Loading…")
  const more = el("button", { class: "button button-quiet", type: "button", hidden: true }, "Show more")
  let limit = PAGE

  function ask() {
    const query = new URLSearchParams({ limit: String(limit) })
    if (scope.value.trim()) query.set("scope", scope.value.trim())
    if (prefix.value.trim()) query.set("prefix", prefix.value.trim())
    return get(appPath(slug, `/channels?${query}`))
  }

  const show = latest(
    signal,
    ask,
    ({ data, next }) => {
      table.fill(data)
      more.hidden = next === null || limit >= LIMIT_MAX
      say(note, next === null ? `${count(data.length)} occupied` : `The first ${count(data.length)}, by name`, "plain")
    },
    error => say(note, error.words ?? error.message),
  )
  more.addEventListener("click", () => {
    limit += PAGE
    show()
  })
  for (const filter of [scope, prefix]) filter.addEventListener("input", show)
  poll(signal, EVERY_MS, show)
  return el(
    "section",
    { class: "card", data: { testid: "channels" } },
    el("div", { class: "card-head" }, el("h2", { data: { focus: "" } }, "Occupied channels"), note),
    el(
      "div",
      { class: "filters" },
      el("div", { class: "filter-text" }, el("label", { for: "scope-filter" }, "Scope"), scope),
      el("div", { class: "filter-text" }, el("label", { for: "prefix-filter" }, "Channel begins with"), prefix),
    ),
    table.node,
    el("div", { class: "row" }, more),
    lookUp(slug),
  )
}

function channelsTable(slug) {
  return new Table({
    label: "Occupied channels",
    testid: "channels-table",
    key: ({ topic }) => topic,
    empty: "Nobody has joined a topic that matches. When a page joins one, it is listed here within five seconds.",
    columns: [
      {
        label: "Topic",
        isHeading: true,
        kind: "codes",
        cell: (item, shown) => shown ?? el("a", { href: addressOf(slug, item) }, item.topic),
      },
      { label: "Subscribers", kind: "number", cell: ({ subscribers }) => count(subscribers) },
    ],
  })
}

function addressOf(slug, { scope, channel }) {
  return channel === null ? link("apps", slug, "channels", scope) : link("apps", slug, "channels", scope, channel)
}

/** A form that opens a channel without subscribers, which may have retained events. */
function lookUp(slug) {
  const scope = el("input", {
    type: "text",
    id: "look-scope",
    value: "public",
    required: true,
    autocapitalize: "none",
    spellcheck: "false",
  })
  const channel = el("input", {
    type: "text",
    id: "look-channel",
    required: true,
    autocapitalize: "none",
    spellcheck: "false",
    placeholder: "foo-topic",
    data: { testid: "look-channel" },
  })
  const form = el(
    "form",
    { class: "look-up" },
    el("div", { class: "filter-text" }, el("label", { for: "look-scope" }, "Scope"), scope),
    el("div", { class: "filter-text" }, el("label", { for: "look-channel" }, "Channel"), channel),
    el("button", { class: "button button-quiet", type: "submit", data: { testid: "look-up" } }, "Open"),
  )
  form.addEventListener("submit", submitted => {
    submitted.preventDefault()
    go(link("apps", slug, "channels", scope.value.trim(), channel.value).slice(1))
  })
  return el("details", { class: "details" }, el("summary", {}, "Open a channel that nobody has joined"), form)
}
