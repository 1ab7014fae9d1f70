// The documents' own examples: every fenced block, to be run as it stands there.

import { readFile } from "node:fs/promises"
import path from "node:path"
import { fileURLToPath } from "node:url"

export const ROOT = path.join(path.dirname(fileURLToPath(import.meta.url)), "../../..")

/** The blocks of a document in their order, each with the words behind its fence. */
export async function blocksOf(file) {
  const text = await readFile(path.join(ROOT, file), "utf8")
  return [...text.matchAll(/^```(.*)\n([^]*?)^```$/gm)].map(([, kind, code]) => ({ kind, code }))
}
