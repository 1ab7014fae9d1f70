// phoenix.js with `longPollFallbackMs` in a browser: it uses long-poll if WebSockets are blocked, and only then.

import assert from "node:assert/strict"
import { describe, test } from "node:test"
import { stopClock } from "./support/browser.mjs"
import { Client } from "./support/client.mjs"
import { GENERATIONS } from "./support/generations.mjs"
import { TEST_APP } from "./support/herald.mjs"
import { ChromiumPage } from "./support/page.mjs"
import { Proxy } from "./support/proxy.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { mint } from "./support/token.mjs"

/** The timeout of a generated Phoenix application, by the clock of the page, which the test moves. */
const FALLBACK_MS = 2500

/** A short timeout, for pages whose clock runs. */
const SOON_MS = 500

/** The options of a client that sends a heartbeat whenever its fallback timeout has passed. */
const PATIENT = { fallbackMs: FALLBACK_MS, heartbeatMs: FALLBACK_MS }

const TOPIC = "public:test-app"

/** One channel less than a socket may have. */
const MANY = 99

let herald, browser
withServerAndBrowser(started => ({ herald, browser } = started))

const able = GENERATIONS.filter(({ fallsBack }) => fallsBack)

describe("e183 if WebSockets are refused the client uses long-poll, with the same params", () => {
  for (const generation of able) {
    test(generation.label, async t => {
      const params = { guardian_token: mint({ listen: ["private:*"] }, TEST_APP.secret) }
      const { proxy, client } = await connect(t, generation, { upgrades: false, fallbackMs: SOON_MS, params })
      const { replies, inbox } = client.join("private:test-app")

      assert.deepEqual(await replies.take(), { status: "ok", response: { message: "Joined" } })
      assert.equal(await client.opened.take(), "long-poll")
      await herald.trigger({ scope: "private", topic: "foo-topic", payload: { by: "HTTP" } })
      assert.deepEqual(await inbox.take(), { event: "foo-topic:msg", payload: { by: "HTTP" } })
      assert.ok(proxy.count("/socket/websocket") >= 1, "it has tried a WebSocket first")
      assert.ok(proxy.count("/socket/longpoll") >= 1)
    })
  }
})

describe("e183 events that it pushes over long-poll are received", () => {
  for (const generation of able) {
    test(generation.label, async t => {
      const { client } = await connect(t, generation, { upgrades: false, fallbackMs: SOON_MS })
      const channel = await client.joined(TOPIC)
      channel.push("foo-topic:msg", { by: "itself" })
      assert.deepEqual(await channel.inbox.take(), { event: "foo-topic:msg", payload: { by: "itself" } })
    })
  }
})

describe("e184 if WebSockets work the client stays on one, with few joins and with many", { concurrency: true }, () => {
  for (const joins of [1, MANY]) {
    for (const generation of able) {
      test(`${generation.label}, ${joins} joined`, async t => {
        const { proxy, client } = await connect(t, generation, { ...PATIENT, isStopped: true })
        const channels = Array.from({ length: joins }, (_, nth) => client.join(`${TOPIC}:${nth}`))
        for (const { replies } of channels) assert.deepEqual(await replies.take(), { status: "ok", response: {} })
        await staysOnWebSocket(client, proxy)
      })
    }
  }
})

describe("e184 if WebSockets work the client stays on one, even if its joins are not answered", { concurrency: true }, () => {
  for (const generation of able) {
    test(generation.label, async t => {
      const { proxy, client } = await connect(t, generation, { ...PATIENT, isStopped: true })
      proxy.keepBack(text => text.includes(`"${TOPIC}:pending","phx_reply"`))
      const { inbox, replies } = client.join(`${TOPIC}:pending`)
      await staysOnWebSocket(client, proxy)
      await herald.trigger({ topic: "pending", payload: { n: 1 } })
      assert.deepEqual(await inbox.take(), { event: "msg", payload: { n: 1 } })
      assert.deepEqual(replies.rest(), [])
    })
  }
})

/**
 * Lets the fallback timeout pass twice, by the clock of the client's page: once after the answer to the client's first
 * ping, and once after the answer to the next heartbeat, so that the client does not fall back on a slow machine.
 */
async function staysOnWebSocket(client, proxy) {
  await client.beats(1)
  for (const answered of [2, 3]) {
    await client.page.tab.clock.runFor(FALLBACK_MS)
    await client.beats(answered)
  }
  assert.equal(proxy.count("/socket/websocket"), 1)
  assert.equal(proxy.count("/socket/longpoll"), 0)
  assert.deepEqual([client.opened.rest(), client.lost.rest()], [["WebSocket"], []])
}

/** A client in its own tab, whose clock may be stopped, behind its own proxy. */
async function connect(t, generation, { upgrades = true, isStopped = false, ...options }) {
  const proxy = await Proxy.start(herald, { upgrades })
  const page = await ChromiumPage.open(browser, generation, herald)
  if (isStopped) await stopClock(page.tab)
  t.after(async () => {
    await page.close()
    await proxy.close()
  })
  return { proxy, client: new Client(generation, proxy, { page, ...options }) }
}
