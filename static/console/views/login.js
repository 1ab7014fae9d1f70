// The login: as the administrator, or with the key and secret of one app.

import { el } from "../dom.js"
import { post } from "../api.js"
import { field, form } from "../fields.js"

const KINDS = {
  admin: {
    label: "Administrator",
    names: [
      ["user", "User name", "text", "username"],
      ["password", "Password", "password", "current-password"],
    ],
  },
  app: {
    label: "App",
    names: [
      ["key", "Key", "text", "username"],
      ["secret", "Secret", "password", "current-password"],
    ],
  },
}

/** `onSession` is called with the session of a successful login. */
export function login({ onSession }) {
  const place = el("div", {})
  const kinds = Object.entries(KINDS).map(([kind, { label }]) =>
    el(
      "label",
      { class: "segment" },
      el("input", {
        type: "radio",
        name: "kind",
        value: kind,
        checked: kind === "admin",
        data: { testid: `login-${kind}` },
        on: { change: () => show(kind) },
      }),
      el("span", {}, label),
    ),
  )

  function show(kind) {
    place.replaceChildren(loginForm(KINDS[kind].names, onSession))
  }

  show("admin")
  const node = el(
    "div",
    { class: "login" },
    el("h1", {}, "Log in"),
    el("fieldset", { class: "segments" }, el("legend", { class: "visually-hidden" }, "Log in as"), kinds),
    place,
  )
  return { title: "Log in", node }
}

function loginForm(names, onSession) {
  const fields = names.map(([name, label, type, autocomplete]) =>
    field({ label, name, type, autocomplete, required: true, autocapitalize: "none", spellcheck: "false" }),
  )
  const { node } = form({
    testid: "login",
    submit: "Log in",
    children: fields.map(({ node }) => node),
    send: async () => onSession(await logIn(Object.fromEntries(fields.map(({ control }) => [control.name, control.value])))),
  })
  return node
}

async function logIn(credentials) {
  try {
    return (await post("/console/login", credentials, { mayBeRefused: true, isWrite: false })).data
  } catch (error) {
    if (error.status !== 401) throw error
    throw new Error(
      "key" in credentials
        ? "The key or the secret is wrong, or the app is inactive."
        : "The user name or the password is wrong.",
    )
  }
}
