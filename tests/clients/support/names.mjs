// The accessible names of a page's elements: those that a screen reader says.

/**
 * Returns the faults of a page: visible elements that need a name and have none, ids that occur twice, and any number
 * of visible first-level headings but one.
 */
export function unnamed(page) {
  return page.evaluate(find)
}

/** Runs in the page, so it contains everything that it uses. */
function find() {
  const isSeen = element => element.checkVisibility({ visibilityProperty: true })
  const wanted = "a[href], button, input, select, textarea, summary, dialog, nav, table, [role=img], [role=region]"
  const unnamed = [...document.querySelectorAll(wanted)].filter(element => isSeen(element) && nameOf(element) === "")
  const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id)
  const twice = ids.filter((id, nth) => ids.indexOf(id) !== nth)
  const headings = [...document.querySelectorAll("h1")].filter(isSeen).length
  return [
    ...unnamed.map(element => `no name: ${element.outerHTML.slice(0, 100)}`),
    ...twice.map(id => `twice: ${id}`),
    ...(headings === 1 ? [] : [`${headings} headings of the first level`]),
  ]

  function nameOf(element) {
    const by = (element.getAttribute("aria-labelledby") ?? "").split(" ").map(id => document.getElementById(id)?.textContent ?? "").join(" ")
    const labels = [...(element.labels ?? [])].map(label => label.textContent).join(" ")
    const own = element.matches("a, button, summary") ? element.textContent : ""
    return [by, element.getAttribute("aria-label") ?? "", labels, own].join(" ").trim()
  }
}
