// The key and secret of an app: the secret is shown on request, and a rotation keeps the previous pair valid for an overlap.

import { announce, attempt, el, keepFocus } from "../dom.js"
import { appPath, post } from "../api.js"
import { code } from "../copy.js"
import { field, form } from "../fields.js"
import { dateTime, since } from "../format.js"
import { list } from "./payload.js"

const OVERLAPS = [
  ["86400", "for 24 hours"],
  ["3600", "for 1 hour"],
  ["604800", "for 7 days"],
  ["0", "no longer: end it now"],
]

/**
 * `onSecret` is called with a shown secret, and `onChange` with the app after a rotation. An app that has just been rotated has its
 * new secret, which is shown at once, because it must be copied into the application's configuration.
 */
export function keys({ app, path, onSecret, onChange }) {
  const secret = el("div", { class: "secret" })
  const show = el(
    "button",
    { class: "button button-quiet button-small", type: "button", data: { testid: "show-secret" } },
    "Show the secret",
  )
  show.addEventListener("click", () =>
    attempt(async () => {
      const { data } = await post(appPath(app.slug, "/secret"), {}, { isWrite: false })
      keepFocus(() => reveal(data.secret))
      announce("The secret is shown.")
    }),
  )

  function reveal(value) {
    secret.replaceChildren(code(value, "the secret", "secret"))
    onSecret(value)
  }

  secret.append(show)
  if (app.secret) reveal(app.secret)
  const facts = [
    ["Key", el("code", { data: { testid: "key" } }, app.key)],
    ["Last used", app.key_last_used_at ? `${since(app.key_last_used_at)} ago` : "not yet, or not recorded"],
    ["Secret", secret],
  ]
  return el(
    "section",
    { class: "card", data: { testid: "keys" } },
    el("h2", { data: { focus: "" } }, "Key and secret"),
    list([...facts, ...previous(app)]),
    rotation({ app, path, onChange }),
  )
}

function previous({ previous_key: key, previous_key_expires_at: expires, previous_key_last_used_at: used }) {
  if (!key) return []
  return [
    [
      "Previous key",
      el(
        "span",
        { data: { testid: "previous-key" } },
        el("code", {}, key),
        ` valid until ${dateTime(expires)}, ${used ? `last used ${since(used)} ago` : "not used since the rotation"}`,
      ),
    ],
  ]
}

function rotation({ app, path, onChange }) {
  const overlap = field({
    label: "The present pair stays valid",
    name: "overlap_seconds",
    tag: "select",
    options: OVERLAPS,
    value: "86400",
  })
  const { node } = form({
    testid: "rotate",
    submit: "Rotate",
    isQuiet: true,
    children: [overlap.node],
    send: async () => {
      const { data } = await post(`${path}/rotate`, { overlap_seconds: Number(overlap.control.value) })
      onChange({ ...app, ...data })
      announce("There is a new key and secret.")
    },
  })
  return el(
    "details",
    { class: "details", data: { testid: "rotate-details" } },
    el("summary", {}, "Rotate key and secret"),
    el(
      "p",
      { class: "hint" },
      "Herald makes a new pair. Deploy your application with the new pair while the present one stays valid. When a pair ends, the joins whose tokens are signed with it end, too.",
    ),
    node,
  )
}
