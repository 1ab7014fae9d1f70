// The settings of an app: its keys, its fields, the code to paste, and for the administrator its deactivation and deletion.

import { announce, el, load } from "../dom.js"
import { adminPath, appPath, patch, post, remove } from "../api.js"
import { confirm } from "../dialog.js"
import { check, field, form } from "../fields.js"
import { go } from "../router.js"
import { snippets } from "../snippets.js"
import { CLIENT_EVENTS } from "./apps.js"
import { loadApp } from "./app.js"
import { keys } from "./keys.js"
import { linesOf } from "./new-app.js"
import { section } from "./overview.js"

export function settings({ slug, session, onApp }) {
  const place = el("div", { class: "settings" }, el("p", { class: "loading" }, "Loading…"))
  const isAdmin = session.as === "admin"
  const path = isAdmin ? adminPath(slug) : appPath(slug)

  function show(app) {
    onApp(app)
    const connect = el("div", {}, snippets(app, session))
    const onSecret = secret => connect.replaceChildren(snippets(app, session, secret))
    return [
      keys({ app, path, onSecret, onChange: showChanged }),
      section("Settings", fieldsForm(app, path, isAdmin, onApp)),
      section("Connect your application", connect),
      isAdmin && dangers(app, path, showChanged),
    ].filter(Boolean)
  }

  /** Shows the app anew. The pressed button does not exist any more, so the focus moves to the first heading. */
  function showChanged(app) {
    place.replaceChildren(...show(app))
    const heading = place.querySelector("[data-focus]")
    heading.tabIndex = -1
    heading.focus()
  }

  load(place, () => loadApp(slug, session), show)
  return place
}

function fieldsForm(app, path, isAdmin, onApp) {
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
  let known
  const { node } = form({
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
      const fields = {
        ...(name && { name: name.control.value }),
        allowed_origins: linesOf(origins.control.value),
        client_events: clientEvents.control.value,
        pusher: pusher.control.value === "true",
        subscription_count: counts.control.checked,
        authorized_only: authorizedOnly.control.checked,
        shared_tokens: sharedTokens.control.checked,
        history_publications: numberIn(publications.control),
        history_seconds: numberIn(seconds.control),
      }
      const changed = changesOf(known, fields)
      if (Object.keys(changed).length === 0) return "Nothing has changed, so nothing was saved."
      const { data } = await patch(path, { app: changed })
      if (data.slug !== app.slug) return go(`/apps/${encodeURIComponent(data.slug)}/settings`)
      fill(data)
      onApp(data)
      return "Saved. The change is in effect."
    },
  })
  /** Shows the fields as they are now: somebody else may have changed some of them. */
  function fill(app) {
    known = app
    if (name) name.control.value = app.name
    origins.control.value = app.allowed_origins.join("\n")
    clientEvents.control.value = app.client_events
    publications.control.value = app.history_publications ?? ""
    seconds.control.value = app.history_seconds ?? ""
    pusher.control.value = String(app.pusher)
    counts.control.checked = app.subscription_count
    authorizedOnly.control.checked = app.authorized_only
    sharedTokens.control.checked = app.shared_tokens
  }
  fill(app)
  return node
}

/** The fields that differ from those of the app. Others are not sent: somebody else may have changed them meanwhile. */
function changesOf(app, fields) {
  return Object.fromEntries(
    Object.entries(fields).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(app[name])),
  )
}

function numberIn({ value }) {
  return value === "" ? null : Number(value)
}

function dangers(app, path, onChange) {
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
  const switchOn = async () => {
    onChange((await patch(path, { app: { active: true } })).data)
    announce("The app is active.")
  }
  const erase = () =>
    confirm({
      title: `Delete ${app.name}?`,
      words: ["The app, its key and its settings are gone for good, and all its joins end. Its usage and its audit trail stay."],
      typed: app.slug,
      verb: "Delete the app",
      act: async () => {
        await remove(path)
        announce(`The app ${app.name} was deleted.`)
        go("/apps")
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
    el(
      "p",
      { class: "hint" },
      app.active
        ? "An inactive app accepts no event, no join and no login. It can be activated again."
        : "This app is inactive: it accepts no event, no join and no login.",
    ),
    el(
      "div",
      { class: "row" },
      activity,
      el("button", { class: "button button-danger", type: "button", data: { testid: "delete" }, on: { click: erase } }, "Delete"),
    ),
  )
}
