// The pages' own examples: every fenced block, to be run exactly as it is printed.

import { readFile } from "node:fs/promises"
import path from "node:path"
import { fileURLToPath } from "node:url"

export const ROOT = path.join(path.dirname(fileURLToPath(import.meta.url)), "../../..")

/** The README and the pages that continue its tour, in reading order; `readme.test.mjs` runs their examples. */
export const TOUR = ["README.md", "docs/clients.md", "docs/tokens.md", "docs/http-api.md", "docs/settings.md", "docs/operating.md"]

/** The fenced blocks of a page in their order; `kind` is the text behind the opening fence. */
export async function blocksOf(file) {
  const text = await readFile(path.join(ROOT, file), "utf8")
  return [...text.matchAll(/^```(.*)\n([^]*?)^```$/gm)].map(([, kind, code]) => ({ kind, code }))
}
