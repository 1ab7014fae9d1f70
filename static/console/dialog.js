// Dialogs: confirmations of actions that cannot be undone, and other windows above the page.

import { el, refocus } from "./dom.js"
import { sayFailure } from "./fields.js"

/**
 * Opens a dialog. The browser keeps the focus in it, and restores the focus when it closes; Escape closes it. If the element that
 * had the focus is gone by then, the heading of the view gets the focus.
 */
export function openDialog({ title, children, testid, onClose }) {
  const focused = document.activeElement
  const heading = el("h2", { id: "dialog-title", class: "dialog-title" }, title)
  const close = el(
    "button",
    { class: "button button-quiet button-small", type: "button", "aria-label": "Close", on: { click: () => dialog.close() } },
    "Close",
  )
  const dialog = el(
    "dialog",
    { class: "dialog", "aria-labelledby": "dialog-title", data: { testid } },
    el("div", { class: "dialog-head" }, heading, close),
    el("div", { class: "dialog-body" }, children),
  )
  dialog.addEventListener("close", () => {
    dialog.remove()
    refocus(focused)
    onClose?.()
  })
  document.body.append(dialog)
  dialog.showModal()
  return dialog
}

/** Closes the open dialog, for example because the page shows another view. */
export function closeDialogs() {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close()
}

/**
 * Asks for a confirmation before `act`, which may return a promise. With `typed`, this text must be typed first. If `act` fails,
 * the dialog stays open and shows the reason, which a dialog that was closed meanwhile shows above the view.
 */
export function confirm({ title, words, verb, typed, act }) {
  const input =
    typed &&
    el("input", {
      type: "text",
      id: "typed",
      autocomplete: "off",
      autocapitalize: "none",
      spellcheck: "false",
      data: { testid: "typed" },
    })
  const question = typed && el("label", { for: "typed" }, "Type ", el("code", {}, typed), " to confirm")
  const note = el("p", { class: "note", role: "alert" })
  const button = el("button", { class: "button button-danger", type: "submit", data: { testid: "confirm" } }, verb)
  const cancel = el("button", { class: "button button-quiet", type: "button", on: { click: () => dialog.close() } }, "Cancel")
  const form = el(
    "form",
    { class: "form" },
    [words].flat().map(text => el("p", {}, text)),
    typed && el("div", { class: "field" }, question, input),
    el("div", { class: "row" }, button, cancel),
    note,
  )
  if (typed) {
    button.disabled = true
    input.addEventListener("input", () => (button.disabled = input.value !== typed))
  }
  form.addEventListener("submit", async submitted => {
    submitted.preventDefault()
    button.disabled = true
    try {
      await act()
      dialog.close()
    } catch (error) {
      if (error.isExpired) return dialog.close()
      sayFailure(note, error.words ?? error.message)
      button.disabled = false
    }
  })
  const dialog = openDialog({ title, children: [form], testid: "confirm-dialog" })
}
