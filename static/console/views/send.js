// The event creator: triggers an event as the application would.

import { el } from "../dom.js"
import { appPath, post } from "../api.js"
import { field, form } from "../fields.js"
import { section } from "./overview.js"

const EXAMPLE = `{\n  "message": "Hello from the console"\n}`

export function send({ slug, query }) {
  const scope = field({
    label: "Scope",
    name: "scope",
    value: query.get("scope") ?? "public",
    required: true,
    maxlength: 32,
    autocapitalize: "none",
    spellcheck: "false",
  })
  const topic = field({
    label: "Channel",
    name: "topic",
    value: query.get("channel") ?? "foo-topic",
    required: true,
    maxlength: 200,
    autocapitalize: "none",
    spellcheck: "false",
    hint: "#general reaches everyone in the scope.",
  })
  const event = field({
    label: "Event",
    name: "event",
    value: "msg",
    required: true,
    maxlength: 200,
    autocapitalize: "none",
    spellcheck: "false",
  })
  const payload = field({
    label: "Payload",
    name: "payload",
    tag: "textarea",
    rows: 8,
    value: EXAMPLE,
    spellcheck: "false",
    class: "mono",
    hint: "A JSON object.",
  })
  const { node } = form({
    testid: "send",
    submit: "Send event",
    children: [el("div", { class: "trio" }, scope.node, topic.node, event.node), payload.node],
    send: async () => {
      const sent = {
        scope: scope.control.value,
        topic: topic.control.value,
        event: event.control.value,
        payload: objectIn(payload.control.value),
        position: true,
      }
      const { position } = await post(appPath(slug, "/events"), sent)
      return position ? `Sent. Its position is ${position}.` : "Sent."
    },
  })
  const card = section("Send an event", node)
  card.querySelector("h2").dataset.focus = ""
  card.classList.add("card-narrow")
  return card
}

/**
 * The text of a JSON object; throws a fault of the field if it is none. The text itself is sent, because numbers and the order of
 * members may change if it is read and written again.
 */
function objectIn(text) {
  try {
    const object = text === "" ? "{}" : text
    const read = JSON.parse(object)
    if (read !== null && typeof read === "object" && !Array.isArray(read)) return object
    throw new Error("it is not an object")
  } catch (error) {
    throw Object.assign(new Error("The payload is not a JSON object."), {
      fields: { payload: [`This is not a JSON object: ${error.message}`] },
    })
  }
}
