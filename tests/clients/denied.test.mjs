// How soon each generation of phoenix.js retries a denied join by itself.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { Client } from "./support/client.mjs"
import { GENERATIONS, overEachTransport } from "./support/generations.mjs"
import { Herald } from "./support/herald.mjs"
import { DEADLINE_MS } from "./support/wait.mjs"

/** The delays after which phoenix.js, since 1.4.3, retries for the first, second, third and fourth time. */
const PACE_MS = [1000, 2000, 5000, 10_000]

/** The tolerance of a pause: timers count whole milliseconds, and by a clock that is not the test's. */
const CLOCK_MS = 10
const DENIAL = { status: "error", response: "authentication_required" }

let herald
before(async () => {
  herald = await Herald.start()
})
after(() => herald?.close())

test("e179 a denied join is retried after 1, 2, 5 and 10 seconds, or never, on the same connection", async t => {
  const clients = overEachTransport(GENERATIONS).map(generation => {
    const client = new Client(generation, herald, { retriesMs: null })
    t.after(() => client.disconnect())
    const { replies } = client.join("private:test-app")
    return { client, replies, ...generation }
  })

  // Clients that never retry are watched for as long as the others.
  await Promise.all(clients.map(async ({ replies, rejoinsDenied }) => {
    await isDenied(replies)
    if (rejoinsDenied) for (const paceMs of PACE_MS) await isDenied(replies, paceMs)
  }))

  for (const { client, replies, rejoinsDenied } of clients) {
    await client.fence()
    const pauses = replies.times.slice(1).map((time, nth) => time - replies.times[nth])
    const expected = rejoinsDenied ? PACE_MS : []
    assert.equal(pauses.length, expected.length, client.label)
    pauses.forEach((pause, nth) => assert.ok(pause >= expected[nth] - CLOCK_MS, `${client.label} paused for ${pauses}`))
    assert.deepEqual([client.lost.rest(), client.opened.rest().length], [[], 1], client.label)
  }
})

async function isDenied(replies, laterMs = 0) {
  assert.deepEqual(await replies.take("a denial", laterMs + DEADLINE_MS), DENIAL)
}
