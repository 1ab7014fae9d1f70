// A publication's payload, which is requested only after a click.

import { el } from "../dom.js"
import { channelPath, exactly, get } from "../api.js"
import { openDialog } from "../dialog.js"
import { bytes, toTheSecond } from "../format.js"

const GENERAL = "#general"
/** The history of any channel, used or not, contains the publications to `#general`, so this name serves for them. */
const ANY_CHANNEL = "any"

/** Shows a publication with its retained payload in a dialog. */
export function showPayload(slug, entry, { onClose }) {
  const place = el("div", { class: "payload", data: { testid: "payload" } }, el("p", { class: "loading" }, "Loading…"))
  const facts = [
    ["Topic", entry.topic],
    ["Event", entry.event],
    ["Time", toTheSecond(entry.at)],
    ["Position", entry.position],
    ["Size", bytes(entry.bytes)],
  ]
  openDialog({ title: "Publication", testid: "payload-dialog", onClose, children: [list(facts), el("h3", {}, "Payload"), place] })
  find(slug, entry).then(
    found =>
      place.replaceChildren(
        found
          ? payloadBlock(found)
          : el(
              "p",
              { class: "empty" },
              "Herald no longer retains this publication. An app keeps only its newest ones; see “History” in the settings.",
            ),
      ),
    error => place.replaceChildren(el("p", { class: "note", role: "alert" }, error.message)),
  )
}

/** A payload as indented JSON, or as base64. */
export function payloadBlock({ payload, payload_base64: base64 }) {
  return el(
    "pre",
    { class: "payload-text", tabindex: "0", role: "region", "aria-label": "Payload" },
    base64 === undefined ? JSON.stringify(payload, null, 2) : `${base64}\n\n(binary, in base64)`,
  )
}

export function list(facts) {
  return el("dl", { class: "facts-list" }, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value ?? "–")]).flat())
}

async function find(slug, { topic, position }) {
  const [scope, channel] = placeOf(slug, topic)
  const since = before(position)
  const query = new URLSearchParams({ limit: "1", ...(since && { since }) })
  const { data } = await get(channelPath(slug, scope, channel, `/history?${query}`), { read: exactly })
  return data.find(publication => publication.position === position) ?? null
}

/** The scope and channel of a topic. On a server with a single app topics are without its slug. */
export function placeOf(slug, topic) {
  const [scope, ...rest] = topic.split(":")
  const channel = (rest[0] === slug ? rest.slice(1) : rest).join(":")
  return [scope, channel === "" || channel === GENERAL ? ANY_CHANNEL : channel]
}

/** The position just before another: the offset after the colon is one less. */
function before(position) {
  const [epoch, offset] = position.split(":")
  return /^[0-9]+$/.test(offset ?? "") && offset !== "0" ? `${epoch}:${BigInt(offset) - 1n}` : null
}
