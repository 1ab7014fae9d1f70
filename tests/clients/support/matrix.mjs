// Which client does what, as docs/conformance.md shows it.

import { readFile, writeFile } from "node:fs/promises"

const DOCUMENT = new URL("../../../docs/conformance.md", import.meta.url)
const BEGIN = "<!-- The matrix is what ran; see tests/clients/generations.test.mjs. -->\n"
const END = "<!-- The matrix ends here. -->\n"

/** What became of each step with each client; a client is of a `label`, in a `place`, over a `transport`. */
export class Matrix {
  constructor(steps, clients) {
    Object.assign(this, { steps, clients })
    this.words = new Map()
  }

  put(step, client, word) {
    this.words.set(`${step} with ${client.id}`, word)
  }

  /** The cell's word; a test that failed, or did not run, has left none. */
  get(step, client) {
    return this.words.get(`${step} with ${client.id}`) ?? "**not shown**"
  }

  get isWhole() {
    return this.words.size === this.steps.length * this.clients.length
  }

  /** One table per place and transport: a line per step, a column per generation. */
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

  /** What the document says. With HERALD_WRITE_CONFORMANCE set, and nothing missing, it is first made to say this. */
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
  if (parts.length !== 2) throw new Error(`docs/conformance.md has not one ${mark.trim()}`)
  return parts
}

function heading({ place, transport }) {
  return `### In ${place}, over ${transport}`
}
