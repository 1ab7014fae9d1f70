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
      const read = objectIn(payload.control.value)
      const sent = {
        scope: scope.control.value,
        topic: topic.control.value,
        event: event.control.value,
        payload: read,
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

/** The JSON object in a text; throws a fault of the field if there is none. */
function objectIn(text) {
  try {
    const read = JSON.parse(text === "" ? "{}" : text)
    if (read !== null && typeof read === "object" && !Array.isArray(read)) return read
    throw new Error("it is not an object")
  } catch (error) {
    throw Object.assign(new Error("The payload is not a JSON object."), {
      fields: { payload: [`This is not a JSON object: ${error.message}`] },
    })
  }
}
