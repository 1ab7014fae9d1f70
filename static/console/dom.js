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

/** Announces a text to screen readers. */
export function announce(words) {
  const region = document.getElementById("announcement")
  // A live region is read aloud when its text changes, so the same words need a change in between.
  region.textContent = ""
  setTimeout(() => (region.textContent = words))
}

/** Calls `ask` at once, and then every `everyMs` milliseconds while the tab is visible, until `signal` aborts. */
export function poll(signal, everyMs, ask) {
  let isAsking = false
  const turn = async () => {
    if (isAsking || document.hidden || signal.aborted) return
    isAsking = true
    await ask()
    isAsking = false
  }
  const timer = setInterval(turn, everyMs)
  document.addEventListener("visibilitychange", turn, { signal })
  signal.addEventListener("abort", () => clearInterval(timer))
  return turn()
}

/**
 * Loads the data of a view once and shows it, or shows the reason of the failure and a button that retries. If the server could not
 * be reached, it also retries when the server answers again.
 */
export async function load(place, ask, show) {
  try {
    const found = await ask()
    place.replaceChildren(...[show(found)].flat())
  } catch (error) {
    if (error.isExpired) return
    const retry = () => {
      network.removeEventListener("reachable", retry)
      if (place.isConnected) load(place, ask, show)
    }
    if (error.status === 0) network.addEventListener("reachable", retry)
    const again = el("button", { class: "button button-quiet", type: "button", on: { click: retry } }, "Try again")
    place.replaceChildren(el("div", { class: "failure", role: "alert" }, el("p", {}, error.words ?? error.message), again))
  }
}
