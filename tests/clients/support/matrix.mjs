// The results of all clients, as docs/conformance.md shows them.

import { readFile, writeFile } from "node:fs/promises"

const DOCUMENT = new URL("../../../docs/conformance.md", import.meta.url)
const BEGIN = "<!-- The matrix is what ran; see tests/clients/generations.test.mjs. -->\n"
const END = "<!-- The matrix ends here. -->\n"

/** The result of each step with each client; a client has a `label`, a `place` and a `transport`. */
export class Matrix {
  constructor(steps, clients) {
    Object.assign(this, { steps, clients })
    this.words = new Map()
  }

  put(step, client, word) {
    this.words.set(`${step} with ${client.id}`, word)
  }

  /** The text of a cell. The cell of a test that failed or did not run says so. */
  get(step, client) {
    return this.words.get(`${step} with ${client.id}`) ?? "**not shown**"
  }

  get isWhole() {
    return this.words.size === this.steps.length * this.clients.length
  }

  /** One table for each place and transport, with a line for each step and a column for each generation. */
  toString() {
    const headings = [...new Set(this.clients.map(heading))]
    const tables = headings.map(title => `\n${title}\n\n${this.table(this.clients.filter(client => heading(client) === title))}`)
    return `${tables.join("")}\n`
  }

  table(clients) {
    const lines = [
      ["", ...clients.map(({ label }) => label)],
      ["---", ...clients.map(() => "---")],
      ...this.steps.map(step => [step, ...clients.map(client => this.get(step, client))]),
    ]
    return lines.map(cells => `| ${cells.join(" | ")} |\n`).join("")
  }

  /** The tables of the page. If HERALD_WRITE_CONFORMANCE is set and no result is missing, first writes them there. */
  async documented() {
    const document = await readFile(DOCUMENT, "utf8")
    const [before, rest] = halves(document, BEGIN)
    const [tables, after] = halves(rest, END)
    if (!process.env.HERALD_WRITE_CONFORMANCE || !this.isWhole) return tables
    await writeFile(DOCUMENT, `${before}${BEGIN}${this}${END}${after}`)
    return `${this}`
  }
}

function halves(text, mark) {
  const parts = text.split(mark)
  if (parts.length !== 2) throw new Error(`docs/conformance.md must have exactly one ${mark.trim()}`)
  return parts
}

function heading({ place, transport }) {
  return `### In ${place}, over ${transport}`
}
