// Code to paste, with a button that copies it.
//
// Browsers offer the clipboard API to HTTPS pages and to this machine's own addresses only. Elsewhere the code is selected,
// and the button says so.

import { announce, el } from "./dom.js"

const COPIED_MS = 2000

/** A block of code named `label`. */
export function code(text, label, testid) {
  const shown = el("pre", { tabindex: "0", role: "region", "aria-label": label, data: { testid } }, text)
  const word = el("span", {}, "Copy")
  const button = el(
    "button",
    { class: "button button-quiet button-small copy", type: "button" },
    word,
    el("span", { class: "visually-hidden" }, ` ${label}`),
  )
  button.addEventListener("click", async () => {
    const isCopied = await copied(shown)
    word.textContent = isCopied ? "Copied" : "Selected"
    announce(isCopied ? "Copied to the clipboard." : "Selected. Copy it with Control and C, or Command and C.")
    setTimeout(() => (word.textContent = "Copy"), COPIED_MS)
  })
  return el("div", { class: "command" }, shown, button)
}

async function copied(shown) {
  try {
    await navigator.clipboard.writeText(shown.textContent)
    return true
  } catch {
    getSelection().selectAllChildren(shown)
    return false
  }
}
