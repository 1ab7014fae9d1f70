// Builds elements. Every text becomes a text node, never markup, because other people write names and payloads.

import { network } from "./api.js"

/**
 * An element with properties and children.
 *
 * `class`, `value` and `checked` are set as properties, `on` holds listeners by event, and `data` is the dataset. All other
 * properties are attributes: `true` is an attribute without a value, and `null` or `false` is none. Children that are `null`
 * or `false` are left out.
 */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) setProperty(made, name, value)
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false))
  return made
}

function setProperty(made, name, value) {
  if (value === null || value === undefined || value === false) return
  if (name === "on") for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener)
  else if (name === "data") Object.assign(made.dataset, value)
  else if (name === "class") made.className = value
  else if (name === "value" || name === "checked") made[name] = value
  else made.setAttribute(name, value === true ? "" : value)
}

/** Sets a text if it differs, so that an unchanged text causes no work and moves no selection. */
export function setText(element, text) {
  const wanted = String(text)
  if (element.textContent !== wanted) element.textContent = wanted
}

/** Waits for some milliseconds. */
export const pause = ms => new Promise(resolve => setTimeout(resolve, ms))

/** Announces a text to screen readers. */
export function announce(words) {
  const region = document.getElementById("announcement")
  // A live region is read aloud when its text changes, so the same words need a change in between.
  region.textContent = ""
  setTimeout(() => (region.textContent = words))
}

/**
 * Shows a text above the view, for what has no place of its own in the view. It stays until it is closed or replaced, or the person
 * goes to another address.
 */
export function notify(words) {
  const notice = document.getElementById("notice")
  setText(document.getElementById("notice-words"), words)
  notice.dataset.address = location.hash
  notice.hidden = words === ""
}

/** Removes the text above the view if it belongs to another address. */
export function dropNotice() {
  if (document.getElementById("notice").dataset.address !== location.hash) notify("")
}

/** Runs the action of a button, and shows above the view why it has failed. */
export async function attempt(act) {
  notify("")
  try {
    await act()
  } catch (error) {
    if (!error.isExpired) notify(error.words ?? error.message)
  }
}

/** Moves the focus to the heading of the changed part of the view, so that a screen reader continues there. */
export function focusHeading() {
  const content = document.getElementById("content")
  const heading = content.querySelector("[data-focus]") ?? content.querySelector("h1")
  if (heading === null) return
  heading.tabIndex = -1
  heading.focus({ preventScroll: true })
}

/** Changes the page. If the element that has the focus is gone or hidden then, the heading gets the focus. */
export function keepFocus(change) {
  const focused = document.activeElement
  change()
  refocus(focused)
}

/** Moves the focus to the heading if the element that had the focus is gone or hidden. */
export function refocus(focused) {
  if (focused && focused !== document.body && focused.getClientRects().length === 0) focusHeading()
}

/** Calls `ask` at once, and then every `everyMs` milliseconds while the tab is visible, until `signal` aborts. */
export function poll(signal, everyMs, ask) {
  let isAsking = false
  const turn = async () => {
    if (isAsking || document.hidden || signal.aborted) return
    isAsking = true
    try {
      await ask()
    } finally {
      isAsking = false
    }
  }
  const timer = setInterval(turn, everyMs)
  document.addEventListener("visibilitychange", turn, { signal })
  signal.addEventListener("abort", () => clearInterval(timer))
  return turn()
}

/**
 * A function that asks, and calls `show` with the answer or `fail` with the error. It drops the outcome if it has been called again
 * meanwhile, or if `signal` has aborted: an early question may be answered last.
 */
export function latest(signal, ask, show, fail) {
  let calls = 0
  return async () => {
    calls += 1
    const nth = calls
    const isLatest = () => nth === calls && !signal.aborted
    try {
      const found = await ask()
      if (isLatest()) keepFocus(() => show(found))
    } catch (error) {
      if (isLatest() && !error.isExpired) fail(error)
    }
  }
}

/**
 * Loads the data of a view once and shows it, or shows the reason of the failure and a button that retries. If the server could not
 * be reached, it also retries when the server answers again. A place that has left the page meanwhile stays as it is.
 */
export async function load(place, ask, show) {
  try {
    const found = await ask()
    if (place.isConnected) keepFocus(() => place.replaceChildren(...[show(found)].flat()))
  } catch (error) {
    if (error.isExpired || !place.isConnected) return
    const retry = () => {
      network.removeEventListener("reachable", retry)
      if (place.isConnected) load(place, ask, show)
    }
    if (error.status === 0) network.addEventListener("reachable", retry)
    const again = el("button", { class: "button button-quiet", type: "button", on: { click: retry } }, "Try again")
    place.replaceChildren(el("div", { class: "failure", role: "alert" }, el("p", {}, error.words ?? error.message), again))
  }
}
