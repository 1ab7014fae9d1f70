// The parts of forms: labelled fields with their hints and faults, and forms that show the outcome of their request.

import { sessionNumber } from "./api.js"
import { el, notify, setText } from "./dom.js"

let made = 0

/**
 * The changed inputs of forms whose sending found that the session has ended, by the address. The login leads back to these forms.
 */
const drafts = new Map()

/**
 * A labelled field; `control` is its input, select or textarea. `tag` and `attributes` make the control, `options` are the
 * `[value, words]` of a select.
 */
export function field({ label, name, hint, tag = "input", options = [], testid, ...attributes }) {
  const id = `field-${(made += 1)}`
  const described = [hint && `${id}-hint`, `${id}-fault`].filter(Boolean).join(" ")
  const control = el(
    tag,
    {
      id,
      name,
      data: { testid: testid ?? name },
      "aria-describedby": described,
      ...(tag === "input" && { type: "text" }),
      ...attributes,
    },
    options.map(([value, words]) => el("option", { value }, words)),
  )
  if (tag === "select" && attributes.value !== undefined) control.value = attributes.value
  const node = el(
    "div",
    { class: "field" },
    el("label", { for: id }, label),
    control,
    hint && el("p", { class: "hint", id: `${id}-hint` }, hint),
    el("p", { class: "fault", id: `${id}-fault`, data: { fault: name } }),
  )
  return { node, control }
}

/** A checkbox with its label. */
export function check({ label, name, checked = false, testid, on }) {
  const control = el("input", { type: "checkbox", name, checked, data: { testid: testid ?? name }, on })
  return { node: el("label", { class: "check" }, control, el("span", {}, label)), control }
}

/**
 * A form. `send` submits it, and may return a text about the success; a refusal is shown at its fields or below them. While `send`
 * runs, the button is disabled, so that nothing is sent twice. If the session has ended, the inputs that the person has changed are
 * kept for the next login. The others are not, because somebody else may change the values behind them until then.
 *
 * A view that fills controls in later calls `filled` with their names.
 */
export function form({ testid, submit, children, send, isQuiet = false, extra = [] }) {
  const button = el(
    "button",
    { class: isQuiet ? "button button-quiet" : "button", type: "submit", data: { testid: `${testid}-submit` } },
    submit,
  )
  const note = el("p", { class: "note", role: "status", data: { testid: `${testid}-note` } })
  const node = el(
    "form",
    { class: "form", autocomplete: "off", data: { testid } },
    children,
    el("div", { class: "row" }, button, extra),
    note,
  )
  /** The inputs that the view has filled in, by the names of their controls. */
  const shown = new Map()
  const filled = names => {
    const inputs = inputsOf(node)
    for (const name of names) shown.set(name, inputs.get(name))
  }
  node.addEventListener("submit", async submitted => {
    submitted.preventDefault()
    if (button.getAttribute("aria-disabled") === "true") return
    button.setAttribute("aria-disabled", "true")
    say(note, "")
    showFaults(node, {})
    const [draft, session] = [draftOf(testid), sessionNumber()]
    try {
      say(note, (await send()) ?? "", "calm")
    } catch (error) {
      // Once another session has begun, the form may be that of another party.
      if (error.isExpired && session === sessionNumber()) drafts.set(draft, changesOf(inputsOf(node), shown))
      if (!error.isExpired) refuse(node, note, error)
    } finally {
      button.removeAttribute("aria-disabled")
    }
  })
  // The caller fills the form in first.
  queueMicrotask(() => {
    filled(inputsOf(node).keys())
    if (restore(node, draftOf(testid))) say(note, "Your inputs are filled in again.", "calm")
  })
  return { node, button, note, filled }
}

const draftOf = testid => `${location.hash} ${testid}`
const controlsOf = node => [...node.elements].filter(({ name }) => name)
const inputsOf = node => new Map(controlsOf(node).map(({ name, value, checked }) => [name, { value, checked }]))
const isSame = (one, other) => one.value === other.value && one.checked === other.checked
const changesOf = (inputs, shown) => new Map([...inputs].filter(([name, input]) => !isSame(input, shown.get(name))))

/** Fills the kept inputs in again. Returns whether there are any. */
function restore(node, draft) {
  const inputs = drafts.get(draft) ?? new Map()
  drafts.delete(draft)
  for (const control of controlsOf(node)) Object.assign(control, inputs.get(control.name))
  return inputs.size > 0
}

/** Forgets the kept inputs, because the party that has typed them logs out, or another party logs in. */
export function dropDrafts() {
  drafts.clear()
}

export function say(note, words, tone = "bad") {
  note.dataset.tone = tone
  setText(note, words)
}

/** Shows a failure in its note, or above the view if the note has left the page meanwhile. */
export function sayFailure(note, words) {
  if (note.isConnected) say(note, words)
  else notify(words)
}

/** Shows a refusal: at the fields that it names, with the focus in the first of them, and otherwise as a note. */
function refuse(node, note, error) {
  const others = showFaults(node, error.fields ?? {})
  const isAtFields = node.querySelector("[aria-invalid=true]") !== null && others.length === 0
  sayFailure(note, isAtFields && node.isConnected ? "" : [error.message, ...others].join(" "))
  node.querySelector("[aria-invalid=true]")?.focus()
}

/** Shows faults at their fields, and returns those that have no field here. */
function showFaults(node, faults) {
  const places = new Map([...node.querySelectorAll("[data-fault]")].map(place => [place.dataset.fault, place]))
  // The slug is made from the name, so a fault of the slug is shown as one of the name.
  if (faults.name && faults.slug) faults = { ...faults, slug: undefined }
  for (const [name, place] of places) {
    place.textContent = (faults[name] ?? []).join(", ")
    node.elements[name]?.setAttribute("aria-invalid", String(place.textContent !== ""))
  }
  return Object.entries(faults)
    .filter(([name, said]) => said && !places.has(name))
    .map(([name, said]) => `${name}: ${[said].flat().join(", ")}.`)
}
