// The web builds of pusher-js, as npm publishes them, in Chromium against a running Herald.

import assert from "node:assert/strict"
import path from "node:path"
import { describe, test } from "node:test"
import { fileURLToPath } from "node:url"
import Pusher from "pusher"
import { ADMIN, TEST_APP } from "./support/herald.mjs"
import { Proxy } from "./support/proxy.mjs"
import { withServerAndBrowser } from "./support/running.mjs"
import { Inbox } from "./support/wait.mjs"

const MODULES = path.join(path.dirname(fileURLToPath(import.meta.url)), "node_modules")
const BUILDS = ["pusher-js-7", "pusher-js"].flatMap(name => ["pusher.min.js", "pusher-with-encryption.min.js"].map(file => ({ name, file })))

let herald, browser, server
withServerAndBrowser(async started => {
  ;({ herald, browser } = started)
  const appId = String((await herald.ask("GET", `/api/admin/apps/${TEST_APP.slug}`, ADMIN)).data.id)
  const { key, secret } = TEST_APP
  const encryptionMasterKeyBase64 = Buffer.alloc(32, 7).toString("base64")
  server = new Pusher({ appId, key, secret, host: "127.0.0.1", port: String(herald.port), useTLS: false, encryptionMasterKeyBase64 })
})

/**
 * A page with a client of a build, whose application authorizes every channel for `user`. The page reports the states
 * of the connection and the events of its channels.
 */
async function open(t, { name, file }, user, port = herald.port) {
  // Any page of that origin works if its policy lets the test add a script.
  const tab = await browser.tab(`${herald.origin}/health`)
  t.after(() => tab.context().close())
  const inbox = new Inbox(`a page with ${file}`)
  await tab.exposeFunction("tell", told => inbox.put(told))
  await tab.exposeFunction("sign", (socketId, channel) =>
    server.authorizeChannel(socketId, channel, channel.startsWith("presence-") ? { user_id: user, user_info: { name: user.toUpperCase() } } : undefined),
  )
  await tab.addScriptTag({ path: path.join(MODULES, name, "dist/web", file) })
  await tab.evaluate(
    ([key, wsPort]) => {
      const authorize = (socketId, channel, done) => window.sign(socketId, channel).then(signed => done(null, signed), done)
      window.client = new window.Pusher(key, {
        cluster: "any",
        wsHost: "127.0.0.1",
        wsPort,
        forceTLS: false,
        enabledTransports: ["ws", "wss"],
        disableStats: true,
        authorizer: ({ name }) => ({ authorize: (socketId, done) => authorize(socketId, name, done) }),
      })
      window.client.connection.bind("state_change", ({ current }) => window.tell({ state: current }))
      window.client.bind_global((event, data) => window.tell({ event, data }))
      window.listen = name => {
        const channel = window.client.subscribe(name)
        for (const event of ["pusher:subscription_succeeded", "msg", "client-typing"])
          channel.bind(event, data => window.tell({ channel: name, event, ...(event.startsWith("pusher:") ? {} : { data }) }))
      }
    },
    [TEST_APP.key, port],
  )
  return {
    call: (method, ...words) => tab.evaluate(([method, words]) => window.client[method](...words) && null, [method, words]),
    state: () => tab.evaluate(() => ({ state: window.client.connection.state, id: window.client.connection.socket_id })),
    trigger: (channel, event, data) => tab.evaluate(([channel, event, data]) => window.client.channel(channel).trigger(event, data), [channel, event, data]),
    listen: channel => tab.evaluate(channel => window.listen(channel), channel),
    /** Takes reports of the page until one has the expected fields, and returns it. */
    async hears(expected) {
      for (;;) {
        const told = await inbox.take(JSON.stringify(expected))
        if (Object.keys(expected).every(field => JSON.stringify(told[field]) === JSON.stringify(expected[field]))) return told
      }
    },
  }
}

const succeeded = channel => ({ channel, event: "pusher:subscription_succeeded" })

for (const build of BUILDS) {
  describe(`${build.name}/dist/web/${build.file}`, () => {
    test("hears what the server SDK triggers, and the client events of another page", async t => {
      const [one, two] = [await open(t, build, "a"), await open(t, build, "b")]
      const channels = ["room", "private-room", "presence-room", ...(build.file.includes("encryption") ? ["private-encrypted-room"] : [])]
      for (const channel of channels) {
        for (const page of [one, two]) {
          await page.listen(channel)
          await page.hears(succeeded(channel))
        }
        await server.trigger(channel, "msg", { hello: "Grüße" })
        for (const page of [one, two]) await page.hears({ channel, event: "msg", data: { hello: "Grüße" } })
      }
      await one.trigger("private-room", "client-typing", { on: true })
      await two.hears({ channel: "private-room", event: "client-typing", data: { on: true } })
    })

    test("comes back by itself when the server restarts, and by hand when its app is enabled again", async t => {
      const proxy = await Proxy.start(herald, { waits: true })
      t.after(() => proxy.close())
      const page = await open(t, build, "a", proxy.port)
      await page.listen("private-room")
      await page.hears(succeeded("private-room"))
      const { id } = await page.state()
      await herald.stop()
      await herald.start()
      await page.hears({ state: "connected" })
      await page.hears(succeeded("private-room"))
      assert.notEqual((await page.state()).id, id)
      await server.trigger("private-room", "msg", { n: 1 })
      await page.hears({ channel: "private-room", event: "msg", data: { n: 1 } })
      await herald.updateApp(TEST_APP.slug, { active: false })
      await page.hears({ state: "disconnected" })
      await herald.updateApp(TEST_APP.slug, { active: true })
      await page.call("connect")
      await page.hears(succeeded("private-room"))
      await server.trigger("private-room", "msg", { n: 2 })
      await page.hears({ channel: "private-room", event: "msg", data: { n: 2 } })
    })
  })
}
