// The demo page ships phoenix.js as npm publishes it, in the latest version that these tests run.

import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"

const pairs = [
  { label: "the client", ours: "phoenix.mjs", published: "priv/static/phoenix.mjs" },
  { label: "its licence", ours: "phoenix.LICENSE.md", published: "LICENSE.md" },
]
for (const { label, ours, published } of pairs) {
  test(`${label} is the published file, byte for byte`, async () => {
    const [here, there] = await Promise.all([
      readFile(new URL(`../../static/${ours}`, import.meta.url)),
      readFile(new URL(`node_modules/phoenix/${published}`, import.meta.url)),
    ])
    assert.ok(here.equals(there), `static/${ours} differs from phoenix's ${published}`)
  })
}
