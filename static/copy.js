// The buttons that copy a command.
//
// Browsers offer the clipboard API to HTTPS pages and to this machine's own addresses only, so a page that came over
// plain HTTP from elsewhere copies the way older pages do. If a browser forbids both, the command is selected.

const COPIED_MS = 2000

/** Wires every button with `data-copies`, the id of the element whose text it copies. */
export function wireCopyButtons() {
  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.addEventListener("click", () => copy(button, document.getElementById(button.dataset.copies)))
  }
}

async function copy(button, source) {
  const isCopied = (await copiedByApi(source.textContent)) || copiedBySelection(source)
  if (isCopied) {
    show(button, "copied", "Copied", "Copied to the clipboard.")
    button.focus()
  } else {
    select(source)
    show(button, "selected", "Selected", "Selected. Copy it with Control and C, or Command and C.")
  }
}

async function copiedByApi(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    // There is no clipboard API on this page, or the browser did not permit its use.
    return false
  }
}

function copiedBySelection(source) {
  select(source)
  try {
    return document.execCommand("copy")
  } catch {
    return false
  }
}

function select(source) {
  getSelection().selectAllChildren(source)
}

/** Shows for a moment what became of it, to the eye on the button and to screen readers beside it. */
function show(button, outcome, word, words) {
  const label = button.querySelector(".copy-word")
  const status = document.getElementById("copy-status")
  clearTimeout(button.resetTimer)
  button.dataset.outcome = outcome
  label.textContent = word
  // A live region is read aloud when its text changes, so the same words need a change in between.
  status.textContent = ""
  setTimeout(() => (status.textContent = words))
  button.resetTimer = setTimeout(() => {
    delete button.dataset.outcome
    label.textContent = "Copy"
  }, COPIED_MS)
}
