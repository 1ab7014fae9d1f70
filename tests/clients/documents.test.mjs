// The pages themselves: their links lead somewhere, the index is complete, and some test runs their examples.

import assert from "node:assert/strict"
import { access, readdir, readFile } from "node:fs/promises"
import path from "node:path"
import { describe, test } from "node:test"
import { blocksOf, ROOT, TOUR } from "./support/markdown.mjs"

const README_LINES_MAX = 200

/** Folders without pages of the project's own. */
const FOREIGN = new Set([".git", "artifacts", "data", "node_modules", "target"])

/**
 * Pages whose examples a test runs: `readme.test.mjs`, `rails.test.mjs`, `protocol.test.mjs`, `recovery.test.mjs` with
 * `generations.test.mjs`, and `pusher-clients.test.mjs`.
 */
const RUN = [...TOUR, "docs/rails.md", "docs/protocol.md", "docs/history.md", "docs/pusher.md"]

/**
 * Pages whose examples are commands with which a person runs tests, measurements or fuzz targets. A test checks the
 * files that they name.
 */
const BY_HAND = ["benches/README.md", "docs/conformance.md", "docs/pusher-conformance.md", "tests/clients/README.md", "tests/fuzz/README.md"]

const FILES = await filesIn("")
const PAGES = FILES.filter(file => file.endsWith(".md") && !file.endsWith(".LICENSE.md"))

describe("the links of", () => {
  for (const page of PAGES) {
    test(page, async () => {
      const broken = []
      for (const link of linksOf(await read(page))) {
        const [target, anchor] = link.split("#")
        const file = target ? path.join(path.dirname(page), target) : page
        if (!(await exists(file))) broken.push(`${link}: there is no ${file}`)
        else if (anchor && !anchorsOf(await read(file)).has(anchor)) broken.push(`${link}: ${file} has no such heading`)
      }
      assert.deepEqual(broken, [])
    })
  }
})

test("every page that a source file names exists", async () => {
  const missing = []
  for (const file of FILES.filter(file => /\.(rs|mjs|toml|md|yml)$|^scripts\/|^\.ci\//.test(file))) {
    for (const [name] of (await read(file)).matchAll(/\b(?:docs|benches|tests\/\w+)\/[\w-]+\.md\b/g)) {
      if (!PAGES.includes(name)) missing.push(`${file}: ${name}`)
    }
  }
  assert.deepEqual(missing, [])
})

test("the index lists every page of docs/", async () => {
  const listed = linksOf(await read("docs/README.md")).map(link => path.join("docs", link))
  const pages = PAGES.filter(page => page.startsWith("docs/") && page !== "docs/README.md")
  assert.deepEqual(pages.filter(page => !listed.includes(page)), [])
})

test(`the README has at most ${README_LINES_MAX} lines`, async () => {
  const lines = (await read("README.md")).trimEnd().split("\n").length
  assert.ok(lines <= README_LINES_MAX, `it has ${lines}`)
})

test("every page with examples has a test that runs them, or is known to be for use by hand", async () => {
  const withExamples = []
  for (const page of PAGES) if ((await blocksOf(page)).length > 0) withExamples.push(page)
  assert.deepEqual(withExamples.filter(page => !RUN.includes(page)).sort(), BY_HAND)
})

test("the commands for use by hand name scripts and tests that exist", async () => {
  const missing = []
  for (const page of BY_HAND) {
    for (const { code } of await blocksOf(page)) {
      for (const [script] of code.matchAll(/scripts\/[\w-]+/g)) if (!(await exists(script))) missing.push(script)
      for (const [, name] of code.matchAll(/--bench ([a-z-]+)/g)) if (!(await exists(`benches/${name}.rs`))) missing.push(name)
      for (const [name] of code.matchAll(/[\w.]+\.test\.mjs/g)) if (!(await exists(`tests/clients/${name}`))) missing.push(name)
    }
  }
  assert.deepEqual(missing, [])
})

/** Every file below a folder, by its path from the root. */
async function filesIn(folder) {
  const found = []
  for (const entry of await readdir(path.join(ROOT, folder), { withFileTypes: true })) {
    const name = path.join(folder, entry.name)
    if (entry.isFile()) found.push(name)
    if (entry.isDirectory() && !FOREIGN.has(entry.name)) found.push(...(await filesIn(name)))
  }
  return found.sort()
}

function read(file) {
  return readFile(path.join(ROOT, file), "utf8")
}

function exists(file) {
  return access(path.join(ROOT, file)).then(() => true, () => false)
}

/** The links within the project, and the pictures, of a page. */
function linksOf(text) {
  const prose = text.replace(/^```[^]*?^```$/gm, "").replace(/`[^`\n]*`/g, "")
  const links = [...prose.matchAll(/\]\(([^)\s]+)\)|(?:src|srcset|href)="([^"]+)"/g)].map(([, link, other]) => link ?? other)
  return links.filter(link => !/^[a-z]+:/.test(link))
}

/** The anchors that GitHub gives to the headings of a page. */
function anchorsOf(text) {
  const headings = [...text.replace(/^```[^]*?^```$/gm, "").matchAll(/^#{1,6} (.*)$/gm)].map(([, heading]) => heading)
  return new Set(headings.map(heading => heading.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").trim().replaceAll(" ", "-")))
}
