// phoenix.js with `longPollFallbackMs` in a real browser: over long-poll where WebSockets do not get through, else not.

import assert from "node:assert/strict"
import { createRequire } from "node:module"
import path from "node:path"
import { after, before, describe, test } from "node:test"
import { Browser } from "./support/browser.mjs"
import { Herald } from "./support/herald.mjs"
import { Proxy } from "./support/proxy.mjs"
import { DEADLINE_MS, eventually } from "./support/wait.mjs"

const FALLBACK_MS = 500
const TOPIC = "public:test-app"
const PHOENIX = path.join(path.dirname(createRequire(import.meta.url).resolve("phoenix")), "phoenix.min.js")

let herald, browser
before(async () => {
  herald = await Herald.start()
  browser = await Browser.launch()
})
after(async () => {
  await browser?.close()
  await herald?.close()
})

describe("phoenix.js with longPollFallbackMs", () => {
  test("behind a proxy that refuses upgrades joins, pushes and receives over long-poll", async t => {
    const { proxy, page } = await open(t, { upgrades: false })
    assert.deepEqual(await join(page), {})
    await herald.trigger({ topic: "foo-topic", payload: { by: "HTTP" } })
    await hears(page, { by: "HTTP" })
    await page.evaluate(() => void window.channel.push("foo-topic:msg", { by: "itself" }))
    await hears(page, { by: "itself" })
    assert.ok(proxy.count("/socket/websocket") >= 1, "it had tried")
    assert.ok(proxy.count("/socket/longpoll") >= 1)
  })

  test("stays on a WebSocket that is healthy", async t => {
    const { proxy, page } = await open(t, { upgrades: true })
    assert.deepEqual(await join(page), {})
    const end = Date.now() + 4 * FALLBACK_MS
    for (let n = 0; Date.now() < end; n += 1) {
      await herald.trigger({ topic: "foo-topic", payload: { n } })
      await hears(page, { n })
    }
    assert.equal(proxy.count("/socket/websocket"), 1)
    assert.equal(proxy.count("/socket/longpoll"), 0)
  })
})

/** A page with the published phoenix.js on it, behind a proxy of its own. */
async function open(t, options) {
  const proxy = await Proxy.start(herald, options)
  const context = await browser.browser.newContext()
  t.after(async () => {
    await context.close()
    await proxy.close()
  })
  context.setDefaultTimeout(DEADLINE_MS)
  const page = await context.newPage()
  // Any page of that origin will do, as long as its policy lets the test add a script.
  await page.goto(`${proxy.origin}/health`)
  await page.addScriptTag({ path: PHOENIX })
  return { proxy, page }
}

/** Connects and joins; the response, or what went wrong. */
function join(page) {
  return page.evaluate(({ topic, longPollFallbackMs }) => new Promise((resolve, reject) => {
    window.heard = []
    window.socket = new window.Phoenix.Socket("/socket", { longPollFallbackMs })
    window.socket.connect()
    window.channel = window.socket.channel(topic)
    window.channel.on("foo-topic:msg", payload => window.heard.push(payload))
    const refused = response => reject(new Error(JSON.stringify(response)))
    window.channel.join().receive("ok", resolve).receive("error", refused)
  }), { topic: TOPIC, longPollFallbackMs: FALLBACK_MS })
}

/** Waits for the next payload, which must be this one. */
async function hears(page, expected) {
  const heard = await eventually(() => page.evaluate(() => window.heard.shift()), "an event in the page")
  assert.deepEqual(heard, expected)
}
