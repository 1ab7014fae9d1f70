// Creates an app, and then shows its key and secret with the code to paste.

import { announce, el, notify } from "../dom.js"
import { post } from "../api.js"
import { code } from "../copy.js"
import { field, form } from "../fields.js"
import { link } from "../router.js"
import { snippets } from "../snippets.js"
import { CLIENT_EVENTS, unserved } from "./apps.js"

export function newApp({ session, signal }) {
  const name = field({
    label: "Name",
    name: "name",
    required: true,
    minlength: 5,
    maxlength: 255,
    hint: "5 to 255 characters. The slug, which topics and paths contain, is made from it.",
  })
  const origins = field({
    label: "Allowed origins",
    name: "allowed_origins",
    tag: "textarea",
    rows: 3,
    spellcheck: "false",
    placeholder: "https://example.com",
    hint: "One per line: the pages that may join. Leave it empty to permit all.",
  })
  const clientEvents = field({
    label: "Who may publish from a page",
    name: "client_events",
    tag: "select",
    options: CLIENT_EVENTS,
    value: "authorized",
  })
  const node = el("div", { class: "view view-narrow" })
  const { node: creation } = form({
    testid: "create",
    submit: "Create app",
    children: [name.node, origins.node, clientEvents.node],
    extra: [el("a", { class: "button button-quiet", href: link("apps") }, "Cancel")],
    send: async () => {
      const fields = {
        name: name.control.value,
        allowed_origins: linesOf(origins.control.value),
        client_events: clientEvents.control.value,
      }
      const { data } = await post("/api/admin/apps", { app: fields })
      if (signal.aborted) notify(`The app ${data.name} was created.`)
      else showCreated(data)
    },
  })
  node.append(el("h1", {}, "New app"), el("div", { class: "card" }, creation))

  function showCreated(app) {
    const heading = el("h1", { tabindex: "-1" }, `${app.name} is ready`)
    const words = unserved(app, session)
    const note = words === "" ? [] : [el("p", { class: "notice", role: "note", data: { testid: "app-note" } }, words)]
    node.classList.remove("view-narrow")
    node.replaceChildren(
      el(
        "div",
        { class: "view-head" },
        heading,
        el("a", { class: "button", href: link("apps", app.slug, "live"), data: { testid: "open-app" } }, "Watch it live"),
      ),
      ...note,
      el(
        "section",
        { class: "card", data: { testid: "created" } },
        el("h2", {}, "Key and secret"),
        el("p", { class: "hint" }, "The secret is shown now. Later a button in the app's settings shows it."),
        code(`HERALD_APP=${app.slug}\nHERALD_KEY=${app.key}\nHERALD_SECRET=${app.secret}`, "the key and secret", "credentials"),
      ),
      el("section", { class: "card" }, el("h2", {}, "Connect your application"), snippets(app, session, app.secret)),
    )
    heading.focus()
    announce(`The app ${app.name} was created.`)
  }
  return { title: "New app", node }
}

/** The lines of a text that hold something. */
export function linesOf(text) {
  return text
    .split("\n")
    .map(line => line.trim())
    .filter(line => line !== "")
}
