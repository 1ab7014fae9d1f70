// The pages ship phoenix.js and uPlot as npm publishes them, in the versions that these tests install.

import assert from "node:assert/strict"
import { readFile } from "node:fs/promises"
import { test } from "node:test"

const pairs = [
  { label: "phoenix.js", ours: "phoenix.mjs", published: "phoenix/priv/static/phoenix.mjs" },
  { label: "the licence of phoenix.js", ours: "phoenix.LICENSE.md", published: "phoenix/LICENSE.md" },
  { label: "uPlot", ours: "console/vendor/uplot/uPlot.esm.js", published: "uplot/dist/uPlot.esm.js" },
  { label: "the style sheet of uPlot", ours: "console/vendor/uplot/uPlot.min.css", published: "uplot/dist/uPlot.min.css" },
  { label: "the licence of uPlot", ours: "console/vendor/uplot/LICENSE", published: "uplot/LICENSE" },
]
for (const { label, ours, published } of pairs) {
  test(`${label} is the published file, byte for byte`, async () => {
    const [here, there] = await Promise.all([
      readFile(new URL(`../../static/${ours}`, import.meta.url)),
      readFile(new URL(`node_modules/${published}`, import.meta.url)),
    ])
    assert.ok(here.equals(there), `static/${ours} differs from npm's ${published}`)
  })
}
