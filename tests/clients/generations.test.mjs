// Every generation of phoenix.js against a running Herald, through the same steps and over both transports: all of them in
// node, the oldest and the latest also in Chromium. The results are the matrix in docs/conformance.md.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { BYTEWISE } from "./steps/bytes.mjs"
import { ENDING } from "./steps/ending.mjs"
import { JOINING } from "./steps/joining.mjs"
import { PRESENCE } from "./steps/presence.mjs"
import { PUSHING } from "./steps/pushing.mjs"
import { RECOVERING } from "./steps/recovering.mjs"
import { Browser } from "./support/browser.mjs"
import { GENERATIONS, LATEST, OLDEST, overEachTransport } from "./support/generations.mjs"
import { Herald } from "./support/herald.mjs"
import { Matrix } from "./support/matrix.mjs"
import { ChromiumPage } from "./support/page.mjs"
import { Stage } from "./support/stage.mjs"

/** The short timeouts of the server that the steps about idle clients use. */
const IDLING = { HERALD__SOCKET__IDLE_TIMEOUT: "4s", HERALD__SOCKET__LONG_POLL_WINDOW: "3s" }

/**
 * A step has `run(stage)`, which may return the text of its cell, and may have
 * - `not(client)`: the reason why a client cannot pass the step,
 * - `arrange(stage)` and `act(stages)`: the preparation, for all clients at once; `stage.arranged` holds the result of
 *   `arrange`.
 */
const STEPS = [...JOINING, ...PUSHING, ...BYTEWISE, ...PRESENCE, ...ENDING, ...RECOVERING]

const CLIENTS = [
  ...overEachTransport(GENERATIONS).map(client => ({ ...client, place: "node" })),
  ...overEachTransport([OLDEST, LATEST]).map(client => ({ ...client, place: "Chromium" })),
].map(client => ({ ...client, id: `${client.label} over ${client.transport} in ${client.place}` }))

const matrix = new Matrix(STEPS.map(({ label }) => label), CLIENTS)
const servers = {}
let browser

before(async () => {
  servers.herald = await Herald.start()
  servers.restarting = await Herald.start()
  servers.idling = await Herald.start(IDLING)
  browser = await Browser.launch()
  await Promise.all(CLIENTS.map(furnish))
})

after(async () => {
  await browser?.close()
  for (const server of Object.values(servers)) await server.close()
})

for (const step of STEPS) {
  describe(step.title, { concurrency: CLIENTS.length }, () => {
    const able = CLIENTS.filter(client => !explained(step, client))
    const stages = new Map()
    if (step.arrange) arrangeTogether(step, able, stages)
    for (const client of able) {
      test(client.id, async t => {
        const stage = stages.get(client) ?? new Stage(client, servers)
        t.after(() => stage.end())
        matrix.put(step.label, client, (await step.run(stage)) || "✓")
      })
    }
  })
}

test("docs/conformance.md shows the results", async () => {
  console.log(matrix.toString())
  assert.equal(await matrix.documented(), matrix.toString(), "HERALD_WRITE_CONFORMANCE=1 updates the page")
})

/** Puts the reason into the matrix if a client cannot pass the step. */
function explained(step, client) {
  const reason = step.not?.(client)
  if (reason) matrix.put(step.label, client, `n/a: ${reason}`)
  return reason
}

/** Prepares all clients, and then acts on all of them at once. */
function arrangeTogether(step, clients, stages) {
  before(async () => {
    clients.forEach(client => stages.set(client, new Stage(client, servers)))
    const all = [...stages.values()]
    await Promise.all(all.map(async stage => (stage.arranged = await step.arrange(stage))))
    await step.act(all)
  })
}

/** Gives a client its own app, and its own tab if it runs in Chromium. */
async function furnish(client, nth) {
  client.app = await servers.herald.createApp({ name: `client-${nth}`, client_events: "all" })
  if (client.place === "Chromium") client.page = await ChromiumPage.open(browser, client, servers.herald)
}
