// How soon each generation of phoenix.js retries a denied join by itself.

import assert from "node:assert/strict"
import { after, before, test } from "node:test"
import { setTimeout as pause } from "node:timers/promises"
import { Client } from "./support/client.mjs"
import { GENERATIONS, overEachTransport } from "./support/generations.mjs"
import { Herald } from "./support/herald.mjs"
import { DEADLINE_MS } from "./support/wait.mjs"

/** The delays after which phoenix.js, since 1.4.3, retries for the first, second, third and fourth time. */
const PACE_MS = [1000, 2000, 5000, 10_000]

/** The tolerance of a pause: timers count whole milliseconds, and by a clock that is not the test's. */
const CLOCK_MS = 10

/** The factor by which a client may take longer than a timer of the test's own that asks the server at the same pace. */
const SLOWER_MAX = 1.4
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

  // Clients that never retry are watched for as long as the others. On a busy machine they are asked as late as the others
  // retry.
  const took = await Promise.all(clients.map(async ({ client, replies, rejoinsDenied }) => {
    await isDenied(replies)
    const start = performance.now()
    for (const paceMs of PACE_MS) {
      if (rejoinsDenied) await isDenied(replies, paceMs)
      else await pause(paceMs).then(() => client.fence())
    }
    return performance.now() - start
  }))
  const atThisPace = Math.max(...took.filter((_, nth) => !clients[nth].rejoinsDenied))
  took.forEach((ms, nth) => assert.ok(ms < SLOWER_MAX * atThisPace, `${clients[nth].client.label} took ${ms} ms, not ${atThisPace}`))

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
