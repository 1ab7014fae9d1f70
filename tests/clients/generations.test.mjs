// Every generation of phoenix.js against a running Herald: each over both transports, in node, the oldest and the latest
// in Chromium too, all through the same life. What ran is the matrix of docs/conformance.md.

import assert from "node:assert/strict"
import { after, before, describe, test } from "node:test"
import { BYTEWISE } from "./steps/bytes.mjs"
import { ENDING } from "./steps/ending.mjs"
import { JOINING } from "./steps/joining.mjs"
import { PRESENCE } from "./steps/presence.mjs"
import { PUSHING } from "./steps/pushing.mjs"
import { Browser } from "./support/browser.mjs"
import { GENERATIONS, LATEST, OLDEST, overEachTransport } from "./support/generations.mjs"
import { Herald } from "./support/herald.mjs"
import { Matrix } from "./support/matrix.mjs"
import { ChromiumPage } from "./support/page.mjs"
import { Stage } from "./support/stage.mjs"

/** How soon a session of the impatient server is over when nothing is heard of it. */
const IDLING = { HERALD__SOCKET__IDLE_TIMEOUT: "4s", HERALD__SOCKET__LONG_POLL_WINDOW: "3s" }

/**
 * A step has a `run(stage)`, which may return the word for its cell, and may have
 * - `not(client)`: why a client cannot,
 * - `arrange(stage)` and `act(stages)`: what comes before, for all clients at once; `stage.arranged` is what was arranged.
 */
const STEPS = [...JOINING, ...PUSHING, ...BYTEWISE, ...PRESENCE, ...ENDING]

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

test("docs/conformance.md shows what ran", async () => {
  console.log(matrix.toString())
  assert.equal(await matrix.documented(), matrix.toString(), "HERALD_WRITE_CONFORMANCE=1 makes it so")
})

/** What cannot be is in the matrix with its reason. */
function explained(step, client) {
  const reason = step.not?.(client)
  if (reason) matrix.put(step.label, client, `n/a: ${reason}`)
  return reason
}

/** Has all clients arrive before anything happens to them together. */
function arrangeTogether(step, clients, stages) {
  before(async () => {
    clients.forEach(client => stages.set(client, new Stage(client, servers)))
    const all = [...stages.values()]
    await Promise.all(all.map(async stage => (stage.arranged = await step.arrange(stage))))
    await step.act(all)
  })
}

/** Gives a client the app that it alone uses, and its tab if it is in Chromium. */
async function furnish(client, nth) {
  client.app = await servers.herald.createApp({ name: `client-${nth}`, client_events: "all" })
  if (client.place === "Chromium") client.page = await ChromiumPage.open(browser, client, servers.herald)
}
