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
const IDLING = { HERALD__SOCKET__IDLE_TIMEOUT: "8s", HERALD__SOCKET__LONG_POLL_WINDOW: "6s" }

/**
 * A step has `run(stage)`, which may return the text of its cell, and may have
 * - `not(client)`: the reason why a client cannot pass the step,
 * - `arrange(stage)` and `act(stages)`: the preparation, for all clients at once; `stage.arranged` holds the result of
 *   `arrange`,
 * - `isApart`: whether it uses the servers `restarting` and `idling`, which no step of another sequence may use.
 */
const STEPS = [...JOINING, ...PUSHING, ...BYTEWISE, ...PRESENCE, ...ENDING, ...RECOVERING]

/**
 * The steps that run one after another, each with all clients. The sequences run beside each other, with apps of their own.
 * There are no more of them, because many clients in one process miss their times on a busy machine.
 */
const SEQUENCES = {
  "on a server that stays": STEPS.filter(step => !step.isApart),
  "with restarts and idle times": STEPS.filter(step => step.isApart),
}

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
})

after(async () => {
  await browser?.close()
  for (const server of Object.values(servers)) await server.close()
})

describe("every generation", { concurrency: Object.keys(SEQUENCES).length }, () => {
  for (const [title, steps] of Object.entries(SEQUENCES)) describe(title, { concurrency: 1 }, () => inSequence(title, steps))
})

test("docs/conformance.md shows the results", async () => {
  console.log(matrix.toString())
  assert.equal(await matrix.documented(), matrix.toString(), "HERALD_WRITE_CONFORMANCE=1 updates the page")
})

/** The tests of these steps. Each client has an app of its own for them, and in Chromium its own tab. */
function inSequence(title, steps) {
  const furnished = new Map()
  before(() => Promise.all(CLIENTS.map(async client => furnished.set(client, await furnish(client, title)))))
  const enter = client => new Stage({ ...client, ...furnished.get(client) }, servers)

  for (const step of steps) {
    describe(step.title, { concurrency: CLIENTS.length }, () => {
      const able = CLIENTS.filter(client => !explained(step, client))
      const stages = new Map()
      if (step.arrange) {
        before(async () => {
          for (const client of able) stages.set(client, enter(client))
          await arrangeTogether(step, [...stages.values()])
        })
      }
      for (const client of able) {
        test(client.id, async t => {
          const stage = stages.get(client) ?? enter(client)
          t.after(() => stage.end())
          matrix.put(step.label, client, (await step.run(stage)) || "✓")
        })
      }
    })
  }
}

/** Puts the reason into the matrix if a client cannot pass the step. */
function explained(step, client) {
  const reason = step.not?.(client)
  if (reason) matrix.put(step.label, client, `n/a: ${reason}`)
  return reason
}

/** Prepares all clients, and then acts on all of them at once. */
async function arrangeTogether(step, stages) {
  await Promise.all(stages.map(async stage => (stage.arranged = await step.arrange(stage))))
  await step.act(stages)
}

async function furnish(client, title) {
  const app = await servers.herald.createApp({ name: `${client.id}, ${title}`, client_events: "all" })
  return { app, page: client.place === "Chromium" ? await ChromiumPage.open(browser, client, servers.herald) : undefined }
}
