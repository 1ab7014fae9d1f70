// Contrast as WCAG 2 computes it, of text as a page shows it.

/** The minimum for text. */
export const CONTRAST_MIN = 4.5

/**
 * Measures the texts in and below the elements that `selector` finds, in their present state.
 *
 * Returns `{ what, ratio }` for each visible text, field value and placeholder.
 */
export function contrasts(page, selector = "body") {
  return page.evaluate(measure, selector)
}

/** Runs in the page, so it contains everything that it uses. */
function measure(selector) {
  // Texts have the elements around them in common, and to read a computed style takes time.
  const ground = remembering(groundOf)
  const opacity = remembering(opacityOf)
  const roots = [...document.querySelectorAll(selector)]
  const elements = roots.flatMap(root => [root, ...root.querySelectorAll("*")])
  return elements.filter(isSeen).flatMap(element => textsOf(element).map(([text, style]) => ({
    what: `${element.tagName.toLowerCase()}.${element.className.baseVal ?? element.className}: ${text.trim().slice(0, 40)}`,
    ratio: ratio(over(colour(style.color, opacity(element)), ground(element)), ground(element)),
  })))

  function isSeen(element) {
    return element.checkVisibility({ visibilityProperty: true }) && !element.closest(".visually-hidden, svg")
  }

  function textsOf(element) {
    const own = [...element.childNodes].filter(node => node.nodeType === Node.TEXT_NODE).map(node => node.data).join("")
    const style = getComputedStyle(element)
    if (element.value && element.matches("input[type=text], textarea")) return [[element.value, style]]
    if (element.placeholder) return [[element.placeholder, getComputedStyle(element, "::placeholder")]]
    return own.trim() === "" ? [] : [[own, style]]
  }

  /** A function with the same results, which computes each of them once. */
  function remembering(compute) {
    const results = new Map()
    return element => {
      if (!results.has(element)) results.set(element, compute(element))
      return results.get(element)
    }
  }

  /** The colour behind an element's text: its background over those of the elements around it. */
  function groundOf(element) {
    if (!element) return [255, 255, 255, 1]
    const own = colour(getComputedStyle(element).backgroundColor, 1)
    return own[3] === 1 ? own : over(own, ground(element.parentElement))
  }

  function opacityOf(element) {
    return element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1
  }

  function colour(css, opacity) {
    const [red, green, blue, alpha = 1] = css.match(/^rgba?\((.*)\)$/)[1].split(/[\s,/]+/).map(Number)
    return [red, green, blue, alpha * opacity]
  }

  function over([...top], below) {
    return [0, 1, 2].map(nth => top[nth] * top[3] + below[nth] * (1 - top[3])).concat(1)
  }

  function ratio(one, other) {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a)
    return (light + 0.05) / (dark + 0.05)
  }

  function luminance(rgb) {
    const [red, green, blue] = rgb.slice(0, 3).map(part => part / 255).map(part => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
  }
}
