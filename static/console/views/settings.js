// The settings of an app: its keys, its fields, the code to paste, and for the administrator its deactivation and deletion.

import { announce, attempt, el, keepFocus, load, notify } from "../dom.js"
import { adminPath, appPath, patch, post, remove } from "../api.js"
import { confirm } from "../dialog.js"
import { check, field, form } from "../fields.js"
import { followSlug, go } from "../router.js"
import { snippets } from "../snippets.js"
import { CLIENT_EVENTS } from "./apps.js"
import { loadApp } from "./app.js"
import { keys } from "./keys.js"
import { linesOf } from "./new-app.js"
import { section } from "./overview.js"

export function settings({ slug, session, signal, onApp }) {
  const place = el("div", { class: "settings" }, el("p", { class: "loading" }, "Loading…"))
  const isAdmin = session.as === "admin"
  const path = isAdmin ? adminPath(slug) : appPath(slug)

  const parts = { keys: el("div", {}), connect: el("div", {}), dangers: el("div", {}) }

  /** Shows the app everywhere but in its form, which may have inputs that are not saved yet. */
  function show(app) {
    onApp(app)
    const onSecret = secret => parts.connect.replaceChildren(snippets(app, session, secret))
    onSecret(null)
    parts.keys.replaceChildren(keys({ app, path, onSecret, onChange }))
    if (isAdmin) parts.dangers.replaceChildren(dangers({ app, path, signal, onChange }))
  }

  const onChange = app => keepFocus(() => show(app))
  load(
    place,
    () => loadApp(slug, session),
    app => {
      show(app)
      return [
        parts.keys,
        section("Settings", fieldsForm({ app, path, isAdmin, signal, onApp })),
        section("Connect your application", parts.connect),
        ...(isAdmin ? [parts.dangers] : []),
      ]
    },
  )
  return place
}

function fieldsForm({ app, path, isAdmin, signal, onApp }) {
  const name =
    isAdmin &&
    field({
      label: "Name",
      name: "name",
      required: true,
      minlength: 5,
      maxlength: 255,
      hint: "A new name makes a new slug, so topics and paths change with it.",
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
  })
  const publications = field({
    label: "History: publications per channel",
    name: "history_publications",
    type: "number",
    min: 0,
    hint: "Empty: the server's default. 0: none.",
  })
  const seconds = field({
    label: "History: seconds",
    name: "history_seconds",
    type: "number",
    min: 0,
    hint: "For how long they are retained. Empty: the server's default.",
  })
  const pusher = field({
    label: "Pusher's clients and server SDKs",
    name: "pusher",
    tag: "select",
    options: [
      ["true", "may use this app"],
      ["false", "are refused"],
    ],
  })
  const counts = check({ label: "Tell Pusher's clients how many subscribers their channels have", name: "subscription_count" })
  const authorizedOnly = check({ label: "Close Pusher's clients that neither sign in nor join a private or presence channel", name: "authorized_only" })
  const sharedTokens = check({ label: "Accept tokens that are signed with the server's GUARDIAN_SECRET", name: "shared_tokens" })
  const fields = {
    ...(name && { name: ofText(name) }),
    allowed_origins: {
      read: () => linesOf(origins.control.value),
      write: lines => (origins.control.value = lines.join("\n")),
    },
    client_events: ofText(clientEvents),
    pusher: { read: () => pusher.control.value === "true", write: is => (pusher.control.value = String(is)) },
    subscription_count: ofCheck(counts),
    authorized_only: ofCheck(authorizedOnly),
    shared_tokens: ofCheck(sharedTokens),
    history_publications: ofNumber(publications),
    history_seconds: ofNumber(seconds),
  }
  const read = () => Object.fromEntries(Object.entries(fields).map(([name, { read }]) => [name, read()]))
  let known
  const { node, filled } = form({
    testid: "settings",
    submit: "Save changes",
    children: [
      name && name.node,
      origins.node,
      clientEvents.node,
      el("div", { class: "duo" }, publications.node, seconds.node),
      pusher.node,
      el("div", { class: "field" }, counts.node, authorizedOnly.node, sharedTokens.node),
    ].filter(Boolean),
    send: async () => {
      const sent = read()
      const changed = changesOf(known, sent)
      if (Object.keys(changed).length === 0) return "Nothing has changed, so nothing was saved."
      const { data } = await patch(path, { app: changed })
      if (data.slug !== app.slug) followSlug(app.slug, data.slug)
      if (signal.aborted) return notify(`The settings of the app ${data.name} are saved.`)
      if (data.slug !== app.slug) return
      fill(data, sent)
      onApp(data)
      return "Saved. The change is in effect."
    },
  })
  /**
   * Shows the fields as they are now, because somebody else may have changed some of them. Fields that differ from those that were
   * sent have been edited meanwhile, and stay.
   */
  function fill(app, sent) {
    known = app
    const edited = changesOf(sent, read())
    const others = Object.keys(fields).filter(name => !(name in edited))
    for (const name of others) fields[name].write(app[name])
    filled(others)
  }
  fill(app, read())
  return node
}

// How the value of a field is read from its control, and written to it.
const ofText = ({ control }) => ({ read: () => control.value, write: text => (control.value = text) })
const ofCheck = ({ control }) => ({ read: () => control.checked, write: is => (control.checked = is) })
const ofNumber = ({ control }) => ({
  read: () => (control.value === "" ? null : Number(control.value)),
  write: number => (control.value = number ?? ""),
})

/** The fields that differ from those of the app. Others are not sent: somebody else may have changed them meanwhile. */
function changesOf(app, fields) {
  return Object.fromEntries(
    Object.entries(fields).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(app[name])),
  )
}

function dangers({ app, path, signal, onChange }) {
  const switchOff = () =>
    confirm({
      title: `Deactivate ${app.name}?`,
      words: [
        "All its joins end, and its key, its tokens and its login are refused until it is activated again. Its history is discarded.",
      ],
      verb: "Deactivate",
      act: async () => {
        onChange((await patch(path, { app: { active: false } })).data)
        announce("The app is inactive.")
      },
    })
  const switchOn = () =>
    attempt(async () => {
      onChange((await patch(path, { app: { active: true } })).data)
      announce("The app is active.")
    })
  const erase = () =>
    confirm({
      title: `Delete ${app.name}?`,
      words: ["The app, its key and its settings are gone for good, and all its joins end. Its usage and its audit trail stay."],
      typed: app.slug,
      verb: "Delete the app",
      act: async () => {
        await remove(path)
        announce(`The app ${app.name} was deleted.`)
        if (!signal.aborted) go("/apps")
      },
    })
  const activity = app.active
    ? el(
        "button",
        { class: "button button-quiet", type: "button", data: { testid: "deactivate" }, on: { click: switchOff } },
        "Deactivate",
      )
    : el(
        "button",
        { class: "button button-quiet", type: "button", data: { testid: "activate" }, on: { click: switchOn } },
        "Activate",
      )
  return section(
    "Deactivate or delete",
    app.active && el("p", { class: "hint" }, "An inactive app accepts no event, no join and no login. It can be activated again."),
    el(
      "div",
      { class: "row" },
      activity,
      el("button", { class: "button button-danger", type: "button", data: { testid: "delete" }, on: { click: erase } }, "Delete"),
    ),
  )
}
